"""Blind: real and synthetic pictures made alike, on a page that does not know which is which; the key beside it."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from storage import keys, steps
from storage.images import decode_grey, pixels_sha256
from storage.reading import Version, open_version
from storage.records import Manifest, Record
from storage.store import Store
from tasks import sources
from tasks.imaging import Grey, letterbox
from tasks.imaging.marks import MARKS, find_marks
from tasks.picture_sets import Picture, open_set
from tasks.reader_study import SCALE, Key, Shown, choosing
from tasks.reader_study.blinding import encode, identity
from tasks.reader_study.choosing import Candidate, Wave
from tasks.report.reader_study import render
from tasks.screening.screen import KEPT, ScreenParams, screen
from tasks.sources import SourceParams

INGEST = "ingest"
"""The step whose table holds the scans; named here because its own module imports Prefect."""

KEY_SUFFIX = ".key.json"

_ROWS = 64
_USUAL = 50  # pictures a side where nobody says how many
_TELLING = 0.9  # share of pairs that bars tell apart, from which on a note says so


class BlindParams(Record):
    """What a reader is shown. `images` are of each side, None for up to 50; `repeats` of all are shown twice."""

    images: int | None = Field(default=None, ge=2, le=1000, description="pictures of each side; null: up to 50")
    repeats: int = Field(default=0, ge=0, le=200, description="pictures that are shown twice")
    per_group: int = Field(default=1, ge=1, le=100, description="pictures of one patient or exam, at most")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="null: drawn at random")


@dataclass(frozen=True)
class Screening:
    """A recipe's real scans: read, screened and split as it says; those that it does not train on are shown."""

    name: str
    source: SourceParams
    params: ScreenParams
    seed: int


class Blind(Record):
    """What was written. `labels` counts the pictures of each side by label."""

    study: str
    page: str
    key: str
    real: int
    synthetic: int
    again: int
    px: int
    labels: dict[str, int]
    from_real: str
    notes: list[str]


@dataclass(frozen=True, eq=False)
class _Side:
    """Pictures that might be shown; `fetch` gives some of them by name, and no more is in memory."""

    described: str
    candidates: list[Candidate]
    fetch: Callable[[set[str]], dict[str, Grey]]


def blind(
    name: str, store_url: str, real: Sequence[str | Screening], out: Path, params: BlindParams | None = None
) -> Blind:
    """Write the page of a reader study, and its key beside it.

    Args:
        name: NAME[@VERSION] whose kept pictures are the synthetic ones.
        store_url: where the version is.
        real: sets of real pictures, as `picture_sets.open_set` takes them, or the scans of recipes. Without any, the
            scans held out from the version's own training are shown, from the steps that made it.
        out: the page to write; the key's name ends in `KEY_SUFFIX` instead.
        params: the defaults where left out.

    Raises:
        ValueError: there are too few pictures, or what should be real is not.
        FileExistsError: the page or key is there already: readers may have answered it.
    """
    from tasks.connect import open_store

    params = params or BlindParams()
    key_file = _free(out)
    seed = secrets.randbits(63) if params.seed is None else params.seed
    store, notes = open_store(store_url), list[str]()
    with open_version(name, store) as version:
        manifest = version.manifest
        made = _synthetic(version)
        px = _px(version, made)
        shown = _named(real, store_url, px, _trained(store, manifest), notes) if real else _held_out(store, manifest)
        waves = _chosen(shown, made, params, np.random.default_rng([seed, 1]))
        images = _fitted(shown, [one for wave in waves for one in wave.real], px)
        images |= _fitted(made, [one for wave in waves for one in wave.synthetic], px)
    notes += _of_frames(waves, images)
    ids = {one: identity(image, seed) for one, image in images.items()}
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"two of the pictures are equal at {px} px: give another --seed, which chooses others")
    again = sorted(ids[one] for one in choosing.twice(waves[0], params.repeats, np.random.default_rng([seed, 2])))
    key = Key(
        dataset=f"{manifest.dataset}@{manifest.version}",
        digest=manifest.digest,
        real=shown.described,
        seed=seed,
        px=px,
        salt=secrets.token_hex(16),
        pictures=sorted(_listed(waves, ids), key=lambda one: one.id),
        again=again,
    )
    in_waves = [sorted(ids[one] for one in (*wave.real, *wave.synthetic)) for wave in waves]
    pngs = {ids[one]: encode(image) for one, image in images.items()}
    html = render(key.study(), choosing.rounds(in_waves, again), pngs, SCALE)
    _write(key_file, key.model_dump_json(indent=1))
    _write(out, html)
    labels = Counter(one.label or "unlabelled" for wave in waves for one in wave.real)
    return Blind(
        study=key.study(),
        page=str(out),
        key=str(key_file),
        real=labels.total(),
        synthetic=labels.total(),
        again=len(again),
        px=px,
        labels=dict(sorted(labels.items())),
        from_real=shown.described,
        notes=notes,
    )


def _free(out: Path) -> Path:
    """Where the key goes; neither it nor the page may be there already."""
    if ":/" in str(out):
        raise ValueError(f"--out {out}: the page shows real scans and must stay on this machine; give a local file")
    if out.name.endswith(".json"):
        raise ValueError(f"--out {out}: give the name of the page, e.g. {out.with_suffix('.html').name}")
    key = out.with_name(out.stem + KEY_SUFFIX)
    for path in (out, key):
        if path.exists():
            raise FileExistsError(
                f"{path} is there already, and readers may have answered it; give another --out, or remove it"
            )
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} for --out; make it first")
    return key


def _synthetic(version: Version) -> _Side:
    rows = version.metadata(["id", "label", "group", "sha256"])
    listed = [Candidate(*map(str, row)) for row in rows.itertuples(index=False)]

    def fetch(names: set[str]) -> dict[str, Grey]:
        return {row["id"]: row["image"] for row in version.take(sorted(names), ["id", "image"])}

    return _Side(f"{len(listed)} kept rows of {version.manifest.dataset}@{version.manifest.version}", listed, fetch)


def _px(version: Version, made: _Side) -> int:
    """Side of the square that every picture is fitted into: that of the version's own pictures."""
    if not made.candidates:
        raise ValueError(f"{version.manifest.dataset}@{version.manifest.version} has no kept rows to show")
    first = made.candidates[0].name
    return max(made.fetch({first})[first].shape)


def _held_out(store: Store, manifest: Manifest) -> _Side:
    """The scans of the version's source that are in no training split and carry no marks."""
    dataset, prefix = f"{manifest.dataset}@{manifest.version}", keys.step_file(INGEST, "", "")[:-1]
    made_by = next((key.removeprefix(prefix) for key in manifest.inputs if key.startswith(prefix)), None)
    scans = None if made_by is None else steps.find(store, INGEST, made_by)
    if scans is None:
        raise ValueError(
            f"the scans that {dataset} was made from are not in the store (any more): name real pictures that it did "
            "not learn from, --real FOLDER or --real RECIPE"
        )
    columns = ["id", "label", "group", "sha256", "split", "verdict", "reasons"]
    found = [
        Candidate(row["id"], row["label"], row["group"], row["sha256"])
        for batch in store.batches(scans.key, columns, 1000)
        for row in batch.to_pylist()
        if row["verdict"] == KEPT
        and row["split"] != "train"
        and not any(why.startswith(MARKS) for why in row["reasons"])
    ]

    def fetch(names: set[str]) -> dict[str, Grey]:
        return {
            row["id"]: decode_grey(row["image"]["bytes"])
            for batch in store.batches(scans.key, ["id", "image"], _ROWS)
            for row in batch.to_pylist()
            if row["id"] in names
        }

    return _Side(f"{len(found)} scans held out from the training of {dataset}", found, fetch)


def _trained(store: Store, manifest: Manifest) -> set[str]:
    """Digests of the scans that the version learned from, as far as it lists them."""
    file = next((file for file in manifest.files if file.path == "sources.parquet"), None)
    if file is None:
        return set()
    return {
        row["sha256"]
        for batch in store.batches(file.key, ["sha256", "split", "verdict"], 10_000)
        for row in batch.to_pylist()
        if row["split"] == "train" and row["verdict"] == KEPT
    }


def _named(real: Sequence[str | Screening], store_url: str, px: int, trained: set[str], notes: list[str]) -> _Side:
    """Pictures of all sets together, but for those that the generator learned from, that are marked, or too small."""
    listed: dict[str, Candidate] = {}
    left_out: Counter[str] = Counter()
    screened = {one.name: list(_screened(one, px)) for one in real if isinstance(one, Screening)}

    def pictures() -> Iterator[tuple[str, Picture]]:
        for one in real:
            if isinstance(one, Screening):
                yield from ((picture.file, picture) for picture in screened[one.name])
            else:
                yield from _of_set(one, store_url)

    for picture_name, picture in pictures():
        if find_marks(picture.image):
            left_out["calipers or text are burned in"] += 1
            continue
        if max(picture.image.shape) < px:
            left_out[f"smaller than {px} px: enlarged they would look blurred"] += 1
            continue
        digest = pixels_sha256(letterbox(picture.image, None, px).image)
        if digest in trained:
            left_out["the version learned from them"] += 1
            continue
        listed[picture_name] = Candidate(picture_name, picture.label, picture.group or picture_name, digest)
    notes += [f"{count} real pictures are not shown: {why}" for why, count in left_out.items()]
    notes.append(
        "training scans are known pixel by pixel: `sonoforge check-leakage` finds other frames of the same patient"
    )

    def fetch(names: set[str]) -> dict[str, Grey]:
        return {name: picture.image for name, picture in pictures() if name in names}

    described = ", ".join(one if isinstance(one, str) else f"recipe {one.name}" for one in real)
    return _Side(f"{len(listed)} pictures of {described}", list(listed.values()), fetch)


def _of_set(spec: str, store_url: str) -> Iterator[tuple[str, Picture]]:
    """Every picture of a set under a name of its own among all sets."""
    for picture in open_set(spec, store_url).pictures():
        if picture.lineage.get("base_digest") or picture.lineage.get("adapter_digest"):
            raise ValueError(f"{spec} holds synthetic pictures ({picture.file} was drawn by a model), no real ones")
        yield f"{spec}/{picture.file}", picture


def _screened(one: Screening, px: int) -> Iterator[Picture]:
    """The scans that a recipe keeps and does not train on."""
    params = one.params.model_copy(update={"px": px})
    for scan in screen(list(sources.read(one.source)), params, one.seed, one.source.dataset):
        if scan.verdict == KEPT and scan.split != "train" and scan.image is not None:
            yield Picture(scan.id, scan.image, None, scan.label, scan.group, scan.split)


def _chosen(shown: _Side, made: _Side, params: BlindParams, rng: np.random.Generator) -> list[Wave]:
    wanted = params.images or _USUAL
    waves = choosing.choose(shown.candidates, made.candidates, wanted, params.per_group, rng)
    count = sum(len(wave.real) for wave in waves)
    if count < (params.images or 2):
        labels = [sorted({one.label or "no label" for one in side.candidates}) for side in (shown, made)]
        raise ValueError(
            f"found {count} real and as many synthetic pictures that can stand beside each other, {wanted} of each "
            f"were asked for. Both sides need the same labels (real: {', '.join(labels[0]) or 'no pictures'}; "
            f"synthetic: {', '.join(labels[1])}) and {params.per_group} of a group at most: ask for fewer --images, "
            "more --per-group, or name more pictures by --real"
        )
    return waves


def _fitted(side: _Side, chosen: Sequence[Candidate], px: int) -> dict[Candidate, Grey]:
    fetched = side.fetch({one.name for one in chosen})
    return {one: letterbox(fetched[one.name], None, px).image for one in chosen}


def _of_frames(waves: Sequence[Wave], images: dict[Candidate, Grey]) -> list[str]:
    """A note where black bars alone tell the sides apart, as drawn ones may: blurred, or of another size."""
    bars = {one: int((image == 0).all(axis=0).sum() + (image == 0).all(axis=1).sum()) for one, image in images.items()}
    real = np.array([bars[one] for wave in waves for one in wave.real])
    made = np.array([bars[one] for wave in waves for one in wave.synthetic])
    area = float(np.sign(made[:, None] - real[None]).mean() / 2 + 0.5)
    told = max(area, 1 - area)
    if told < _TELLING:
        return []
    lines = f"real: {np.median(real):g} black rows and columns, synthetic: {np.median(made):g}, medians"
    return [
        f"the black bars around the pictures alone tell {told:.0%} of pairs apart ({lines}): readers may judge the "
        "frame, not the tissue"
    ]


def _listed(waves: Sequence[Wave], ids: dict[Candidate, str]) -> Iterator[Shown]:
    for wave in waves:
        for one in wave.real:
            yield Shown(id=ids[one], truth="real", name=one.name, label=one.label, group=one.group)
        for one in wave.synthetic:
            yield Shown(id=ids[one], truth="synthetic", name=one.name, label=one.label, group=one.group)


def _write(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
