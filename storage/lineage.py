"""What one row was made from: the scans it descends from, the weights that drew it, how, and what became of it."""

from pathlib import Path
from typing import Any

from pydantic import Field

from storage import json_stream
from storage.checks.problems import printable
from storage.checks.thin import ANCESTORS, LEDGER, METADATA, SOURCES
from storage.errors import CorruptFileError, RowNotFoundError, StorageError
from storage.lookup import lookup
from storage.records import LINEAGE_FIELDS, SYNTHETIC_SCHEMA, Manifest, Record
from storage.store import Store, scratch

PROVENANCE = "provenance.json"

_WEIGHTS = ("base_digest", "decoder_digest", "adapter_digest", "controlnet_digest", "harmonizer_digest")
_LARGEST = 64 * 2**20


class Ancestor(Record):
    """A scan that the row descends from, as "background", "mask" or "levels".

    `scan` is its row of `sources.parquet`: dataset, file, group, split, sha256 and so on. None where the version does
    not list it.
    """

    role: str
    id: str
    kind: str | None = Field(default=None)  # of a background: real, simulated, synthetic; of a mask: `mask_kind`
    scan: dict[str, Any] | None = Field(default=None)


class Weights(Record):
    """Weights that drew the row: its base, decoder, adapter, ControlNet or harmonizer; name and address from
    provenance.json."""

    role: str
    digest: str
    name: str | None = Field(default=None)
    uri: str | None = Field(default=None)


class Lineage(Record):
    """Where one planned sample came from and what became of it.

    `row` is what it is (label, split, group, sha256 …); `drawing` how it was drawn (prompt, sampler, steps, guidance,
    seed, candidates …); `scores` what judges said. Nulls are left out.
    """

    version: str
    id: str
    verdict: str
    reasons: list[str]
    row: dict[str, Any]
    ancestors: list[Ancestor]
    weights: list[Weights]
    drawing: dict[str, Any]
    scores: dict[str, float]
    recipe_digest: str | None
    recipe: dict[str, object]


def trace(store: Store, manifest: Manifest, id: str) -> Lineage:
    """Trace a planned sample of a version, be it kept, rejected or failed.

    Only what is needed of the ledger and of the sources is read.

    Raises:
        RowNotFoundError: the version planned no such sample; the message names the nearest ids.
        CorruptFileError: a table is missing or damaged.
    """
    name = f"{manifest.dataset}@{manifest.version}"
    row = _planned(store, manifest, name, id)
    made = {column: row.pop(column) for column, _ in LINEAGE_FIELDS if column in row}
    made = {column: value for column, value in made.items() if value is not None}
    verdict, reasons, recipe_digest = row.pop("verdict"), row.pop("reasons") or [], row.pop("recipe_digest", None)
    known = {column: value for column, value in row.items() if column in SYNTHETIC_SCHEMA.names or column == "licence"}
    scores = {column: value for column, value in row.items() if column not in known and isinstance(value, float)}
    ancestors = _ancestors(store, manifest, name, made)
    weights = _weights(store, manifest, name, made)
    used = {*ANCESTORS, *_WEIGHTS, "background_kind", "mask_kind"}
    return Lineage(
        version=name,
        id=id,
        verdict=verdict,
        reasons=reasons,
        row={column: value for column, value in known.items() if value is not None and column != "id"},
        ancestors=ancestors,
        weights=weights,
        drawing={column: value for column, value in made.items() if column not in used},
        scores=scores,
        recipe_digest=recipe_digest,
        recipe=manifest.recipe,
    )


def lines(lineage: Lineage) -> list[str]:
    """A lineage as an indented tree for people; the recipe is left to `Lineage.recipe`."""
    verdict = f"{lineage.verdict}: {'; '.join(lineage.reasons)}" if lineage.reasons else lineage.verdict
    found = [f"{lineage.id} of {lineage.version}, {verdict}", f"  {_listed(lineage.row)}"]
    for ancestor in lineage.ancestors:
        kind = f" ({ancestor.kind})" if ancestor.kind else ""
        found.append(f"├─ {ancestor.role}{kind}: {ancestor.id}")
        scan = {} if ancestor.scan is None else {name: ancestor.scan[name] for name in ancestor.scan if name != "id"}
        found.append(f"│    {_listed(scan)}" if scan else "│    not among the sources of this version")
    for weights in lineage.weights:
        said = ", ".join(text for text in (weights.name, weights.uri) if text)
        found.append(f"├─ {weights.role}: {weights.digest}" + (f" ({said})" if said else ""))
    if lineage.drawing:
        found.append(f"├─ drawn with {_listed(lineage.drawing)}")
    if lineage.scores:
        found.append("├─ scored " + ", ".join(f"{name} {value:.3g}" for name, value in lineage.scores.items()))
    found.append(f"└─ recipe {lineage.recipe_digest or 'unknown'}")
    return [printable(line, 2000) for line in found]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, []))


def _planned(store: Store, manifest: Manifest, name: str, id: str) -> dict[str, Any]:
    path = LEDGER if any(file.path == LEDGER for file in manifest.files) else METADATA
    with lookup(store, manifest.files, path, name) as table:
        if table is None:
            raise CorruptFileError(f"{name} holds neither {LEDGER} nor {METADATA}: its rows cannot be traced")
        row = table.find(id)
        if row is None:
            near = table.near(id)
            advice = f"did you mean {', '.join(near)}?" if near else "it holds none at all"
            raise RowNotFoundError(f"{name} planned no sample {id!r}: {advice}")
        if row.get("verdict") is None:
            raise CorruptFileError(f"{path} of {name} holds no verdict on {id}: `sonoforge verify --deep` says more")
        return row


def _ancestors(store: Store, manifest: Manifest, name: str, made: dict[str, Any]) -> list[Ancestor]:
    found: list[Ancestor] = []
    with lookup(store, manifest.files, SOURCES, name) as table:
        for column in ANCESTORS:
            if column in made:
                role = column.removesuffix("_id")
                scan = None if table is None else table.find(made[column])
                found.append(Ancestor(role=role, id=made[column], kind=made.get(f"{role}_kind"), scan=scan))
    return found


def _weights(store: Store, manifest: Manifest, name: str, made: dict[str, Any]) -> list[Weights]:
    said = _said(store, manifest, name) if any(column in made for column in _WEIGHTS) else []
    found: list[Weights] = []
    for column in _WEIGHTS:
        if column in made:
            digest, role = str(made[column]), column.removesuffix("_digest")
            same = [item for item in said if digest and str(item["digest"]["sha256"]).startswith(digest)]
            # One file may play two parts: an adapter that also repairs seams.
            item = next((item for item in same if str(item.get("name", "")).startswith(role)), None)
            item = item or next(iter(same), {})
            name_and_uri = {field: str(item[field]) for field in ("name", "uri") if item.get(field) is not None}
            found.append(Weights(role=role, digest=digest, **name_and_uri))
    return found


def _said(store: Store, manifest: Manifest, name: str) -> list[dict[str, Any]]:
    """What provenance.json says that the version was made from; nothing where the version has none."""
    file = next((file for file in manifest.files if file.path == PROVENANCE), None)
    if file is None:
        return []
    with scratch() as temporary:
        local = Path(temporary) / PROVENANCE
        try:
            if file.bytes > _LARGEST or store.fetch(file.key, local) != file.sha256:
                raise CorruptFileError(f"{PROVENANCE} of {name} is damaged: `sonoforge verify` says more")
            content = json_stream.load(local, _LARGEST)
            listed = content["predicate"]["buildDefinition"]["resolvedDependencies"]
            return [item for item in listed if "sha256" in item.get("digest", {})]
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise CorruptFileError(f"{PROVENANCE} of {name} is gone from the store") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CorruptFileError(f"{PROVENANCE} of {name} is no statement of sonoforge: {error}") from error
