"""Describe: the documents of a version, from what its build knows and what lies in its folder."""

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import yaml

from storage import weights
from storage.formats.parquet import read_batches
from storage.records import Outcome, Ref, Written
from tasks import sources
from tasks.curate import Curation
from tasks.documents import card, croissant, licences, provenance, scorecard, tally
from tasks.documents.facts import Facts, Ingredient, PublishedFile
from tasks.documents.licences import Licensed
from tasks.quality import extractors
from tasks.quality.extractors import ExtractorParams
from tasks.quality.gate import GateParams
from tasks.sources import SourceParams
from tasks.sources import folder as own_scans
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import controlnet

EMBEDDED = "sonoforge-base"
PACKAGES = (
    "sonoforge",
    "torch",
    "diffusers",
    "peft",
    "transformers",
    "monai",
    "numpy",
    "pillow",
    "pyarrow",
    "pycocotools",
)
_ROWS = 65_536  # of a thin table in memory at a time


def licensed(source: SourceParams, base: str, start: str | None = None) -> list[Licensed]:
    """What a dataset is made from, with the licence of each as its owner states it; `start` is what its ControlNet
    goes on from.

    Raises:
        ValueError: base or ControlNet are not there.
    """
    module = sources.SOURCES[source.dataset]
    stated = source.licence if isinstance(source, own_scans.Params) else module.LICENCE
    citation = "" if module.CITATION == "none" else module.CITATION
    called = EMBEDDED if base == "embedded" else weights.shown(base)
    made_from = [
        Licensed(name=f"scans of {source.dataset}", licence=stated, attribution=citation),
        Licensed(name=f"base {called}", licence=bases.licence(bases.locate(base))),
    ]
    if start is not None:
        licence = bases.licence(weights.locate(start, controlnet.LAYOUT))
        made_from.append(Licensed(name=f"ControlNet {weights.shown(start)}", licence=licence))
    return made_from


def ingredients(
    scans: Ref,
    base: str,
    trained: Mapping[str, Ref],
    extractor: ExtractorParams | None = None,
    start: str | None = None,
) -> list[Ingredient]:
    """What went into a dataset, by digest. A Ref without rows stands for what the recipe does not train."""
    used = [
        Ingredient(name="scans", sha256=scans.sha256, uri=f"store:{scans.key}"),
        Ingredient(name="base", sha256=bases.digest(bases.locate(base)), uri=_base_uri(base)),
    ]
    if start is not None:
        sha256 = weights.digest(weights.locate(start, controlnet.LAYOUT), controlnet.LAYOUT)
        used.append(Ingredient(name="controlnet start", sha256=sha256, uri=_uri(start)))
    used += [
        Ingredient(name=name, sha256=ref.sha256, uri=f"store:{ref.key}")
        for name, ref in sorted(trained.items())
        if ref.rows
    ]
    asked = extractor or ExtractorParams()
    uri = f"sonoforge:models/{extractors.SHIPPED.name}" if asked.weights is None else _weights_uri(asked.weights)
    return [*used, Ingredient(name="extractor", sha256=extractors.load(asked).digest, uri=uri)]


def packages() -> dict[str, str]:
    """Versions of what the pictures depend on."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def gather(
    folder: Path,
    *,
    dataset: str,
    description: str,
    recipe: Mapping[str, object],
    recipe_digest: str,
    formats: Sequence[str],
    score_names: Sequence[str],
    made_from: Sequence[Licensed],
    used: Sequence[Ingredient],
    curation: Curation,
) -> Facts:
    """Everything that the documents of the version in `folder` say."""
    gate = GateParams.model_validate(recipe.get("gate", {}))
    gates = {"samples kept": f"at least {gate.min_kept} samples kept"}
    for limit in gate.limits:
        gates[limit.score] = f"{gates[limit.score]} and {limit.asked}" if limit.score in gates else limit.asked
    return Facts(
        dataset=dataset,
        description=description,
        recipe=recipe,
        recipe_yaml=yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True),
        recipe_digest=recipe_digest,
        outcome=Outcome(**curation.model_dump(include=set(Outcome.model_fields))),
        tally=tally.count(
            _batches(folder / "metadata.parquet"), _batches(folder / "ledger.parquet", ["label"]), score_names
        ),
        terms=licences.combine(made_from),
        sources=named(made_from),
        formats=formats,
        score_names=score_names,
        limits={limit.score: (limit.min, limit.max) for limit in curation.thresholds},
        gates=gates,
        problems=curation.problems,
        ingredients=used,
        packages=packages(),
    )


def named(made_from: Sequence[Licensed]) -> list[str]:
    """One line a source: name, licence, citation."""
    return [f"{one.name}: {one.licence}." + (f" {one.attribution}" if one.attribution else "") for one in made_from]


def write(folder: Path, facts: Facts, written: Mapping[str, Written]) -> None:
    """Write scorecard.json, README.md, croissant.json and, last, provenance.json about everything in `folder`.

    `written` spares files that were hashed on the way a second reading.
    """
    judged = scorecard.judge(facts)
    (folder / "scorecard.json").write_text(scorecard.render(judged), encoding="utf-8")
    (folder / "README.md").write_text(card.render(facts, judged), encoding="utf-8")
    files = _files(folder, written)
    (folder / "croissant.json").write_text(croissant.render(facts, files), encoding="utf-8")
    files += [_described(folder, folder / "croissant.json", written)]
    (folder / provenance.FILE).write_text(provenance.render(facts, files), encoding="utf-8")


def _batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    yield from read_batches(path, columns, _ROWS)


def _files(folder: Path, written: Mapping[str, Written]) -> list[PublishedFile]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [_described(folder, path, written) for path in found]


def _described(folder: Path, path: Path, written: Mapping[str, Written]) -> PublishedFile:
    name = path.relative_to(folder).as_posix()
    known = written.get(name)
    sha256 = known.sha256 if known is not None else None
    if sha256 is None:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return PublishedFile(path=name, sha256=sha256, bytes=path.stat().st_size, rows=known.rows if known else None)


def _base_uri(base: str) -> str | None:
    return f"sonoforge:models/{EMBEDDED}" if base == "embedded" else _uri(base)


def _uri(name: str) -> str | None:
    """Where weights can be had; None for a folder of this machine, which is nobody else's business."""
    if "://" in name:
        return weights.shown(name)
    return None if Path(name).expanduser().exists() else f"https://huggingface.co/{name}"


def _weights_uri(name: str) -> str | None:
    """Where weights can be had; None for a file of this machine."""
    return weights.shown(name) if "://" in name else None
