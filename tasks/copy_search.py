"""Search for copies: which pictures of a synthetic set are copies of training pictures, and how sure that is.

Two things are looked for in every picture: the whole of it or any part (`tasks.quality.copies.Index`), and, where both
sides have masks, its lesion (`nearest_texture`).
"""

import csv
import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.images import pixels_sha256
from storage.records import Record
from tasks import track
from tasks.picture_sets import Picture, PictureSet, open_set
from tasks.quality.copies import COPY, LESION_COPY, SAME, Index, nearest_texture, textures
from tasks.quality.resampling import wilson

STEP = "search copies"


class CopyParams(Record):
    """How copies are searched."""

    strangers: int = Field(
        default=300, ge=20, le=100_000, description="pictures that the limit is taken from, at most, chosen by the seed"
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1)


class Rate(Record):
    """`found` of `of`, as a share with its 95 % Wilson interval; an empty set has none."""

    found: int
    of: int
    share: float | None
    low: float
    high: float


class CopyRow(Record):
    """One synthetic picture: the training picture it resembles most, how much (0..1), and whether that is a copy.

    `declared`: what it resembles is the background that its own row names, so the likeness is no secret; it is then no
    copy unless it also is one of another training picture. `lesion_*`: the same for its lesion alone, a correlation
    -1..1; None where either side has no mask.
    """

    file: str
    nearest: str | None
    similarity: float
    is_copy: bool
    declared: bool
    lesion_nearest: str | None = None
    lesion_similarity: float | None = None


class CopyTable(Record):
    """All rows, and what is known of the limits they are judged by.

    `limit` is the larger of the similarity that strangers never reached in tests and `strangers_95`, the 95th
    percentile of what pictures that cannot be copies reach: the held-out ones or, without these, training pictures
    against those of other groups, frames of one sweep left out. `lesion_limit` is the same for lesions, with the 99th
    percentile, so that both together stay below 5 %. `alarms` are those above either limit all the same.
    `copies` counts rows, `copied` the training pictures that have a copy.
    """

    train: str
    synthetic: str
    held_out: str | None
    limit: float
    lesion_limit: float
    strangers_95: float
    alarms: Rate
    copies: Rate
    copied: Rate
    declared: int
    unreadable: dict[str, str]
    notes: list[str]
    rows: list[CopyRow] = Field(repr=False)


@dataclass(frozen=True)
class _Training:
    """The training set, ready to be searched; `ids` are the digests that published rows name scans by."""

    index: Index
    files: list[str] = field(repr=False)
    groups: list[str | None] = field(repr=False)
    ids: Mapping[str, int] = field(repr=False)
    pixels: Mapping[str, int] = field(repr=False)
    lesions: NDArray[np.float32] = field(repr=False)
    lesion_rows: NDArray[np.intp] = field(repr=False)


@dataclass(frozen=True)
class _Limits:
    """See `CopyTable`."""

    whole: float
    lesion: float
    strangers_95: float
    alarms: Rate


def find(
    train: str,
    synthetic: str,
    held_out: str | None = None,
    store: str = "./store",
    params: CopyParams | None = None,
) -> CopyTable:
    """Search `synthetic` for copies of `train`; each is whatever `picture_sets.open_set` opens.

    Args:
        held_out: real pictures of people who are not in `train`: what they reach is no copy.
        store: where versions are looked up.

    Raises:
        ValueError: a set is empty, or `train` shows nothing that could be recognised.
    """
    params = params or CopyParams()
    sides = {name: open_set(name, store) for name in (train, synthetic, held_out) if name is not None}
    known = _training(sides[train])
    limits = _limits(known, sides[held_out] if held_out else None, sides[train], params)
    families: dict[int, frozenset[int]] = {}
    rows = [_row(picture, known, limits, families) for picture in _read(sides[synthetic], "synthetic")]
    # A declared likeness is no copy, so such a row is one by its lesion.
    whole = {row.nearest for row in rows if row.is_copy and row.similarity >= limits.whole and not row.declared}
    lesions = {row.lesion_nearest for row in rows if row.is_copy and (row.similarity < limits.whole or row.declared)}
    copied = whole | lesions
    return CopyTable(
        train=sides[train].describe,
        synthetic=sides[synthetic].describe,
        held_out=sides[held_out].describe if held_out else None,
        limit=limits.whole,
        lesion_limit=limits.lesion,
        strangers_95=limits.strangers_95,
        alarms=limits.alarms,
        copies=_rate(sum(row.is_copy for row in rows), len(rows)),
        copied=_rate(len(copied), len(known.files)),
        declared=sum(row.declared for row in rows),
        unreadable={bad.file: bad.reason for side in sides.values() for bad in side.unreadable},
        notes=_notes(limits, held_out is not None, known),
        rows=rows,
    )


def write_csv(table: CopyTable, path: Path) -> None:
    """One line a synthetic picture: file, nearest, similarity, is_copy and the rest of `CopyRow`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(CopyRow.model_fields))
        writer.writeheader()
        for row in table.rows:
            writer.writerow(
                {
                    name: str(value).lower() if isinstance(value, bool) else value
                    for name, value in row.model_dump().items()
                }
            )


def _training(train: PictureSet) -> _Training:
    files, groups, squares, lesion_rows = list[str](), list[str | None](), list[NDArray[np.float32]](), list[int]()
    ids, pixels = dict[str, int](), dict[str, int]()

    def images() -> Iterator[NDArray[np.uint8]]:
        for row, picture in enumerate(_read(train, "train")):
            files.append(picture.file)
            groups.append(picture.group)
            sha256 = pixels_sha256(picture.image)
            pixels.setdefault(sha256, row)
            parts = picture.file.split("/")
            for at in range(len(parts)):
                ids.setdefault(_scan_digest("/".join(parts[at:]), sha256), row)
            if name := picture.lineage.get("id"):
                ids[name.rsplit("-", 1)[-1]] = row
            if picture.mask is not None and picture.mask.any():
                squares.append(textures(picture.image[None], picture.mask[None]))
                lesion_rows.append(row)
            yield picture.image

    index = Index.of(images())
    lesions = np.concatenate(squares) if squares else np.zeros((0, 1, 1), np.float32)
    return _Training(index, files, groups, ids, pixels, lesions, np.array(lesion_rows, np.intp))


def _scan_digest(file: str, sha256: str) -> str:
    """How the id of a scan ends when a source calls its file so: see `screening.screen`."""
    return hashlib.sha256(f"{file}\0{sha256}".encode()).hexdigest()[:12]


def _limits(known: _Training, held_out: PictureSet | None, train: PictureSet, params: CopyParams) -> _Limits:
    """From what pictures that are no copies reach at most: held-out ones or, without these, training pictures against
    the others, without those of their group and what is alike enough to be of their sweep."""
    asked = held_out or train
    chosen = set(np.random.default_rng(params.seed).permutation(asked.count)[: params.strangers].tolist())
    reached: list[tuple[float, float]] = []
    for row, picture in enumerate(_read(asked, "strangers")):
        if row not in chosen:
            continue
        kin = () if held_out else _kin(known, row)
        found = known.index.search(picture.image, kin)
        sweep = () if held_out else [match.row for match in found if match.similarity >= SAME]
        whole = max((match.similarity for match in found if match.row not in sweep), default=0.0)
        _, lesion = _nearest_lesion(picture, known, {*kin, *sweep})
        reached.append((whole, -1.0 if lesion is None else lesion))
    whole, lesion = np.array(reached).reshape(-1, 2).T
    compared = lesion[lesion > -1]
    strangers_95 = float(np.percentile(whole, 95)) if len(whole) else 0.0
    limit = max(COPY, strangers_95)
    lesion_limit = max(LESION_COPY, float(np.percentile(compared, 99)) if len(compared) else 0.0)
    alarms = int(((whole >= limit) | (lesion >= lesion_limit)).sum())
    return _Limits(limit, lesion_limit, strangers_95, _rate(alarms, len(whole)))


def _kin(known: _Training, row: int) -> Collection[int]:
    """A training picture and the others of its group."""
    group = known.groups[row]
    return [row] if group is None else [k for k, other in enumerate(known.groups) if other == group]


def _row(picture: Picture, known: _Training, limits: _Limits, families: dict[int, frozenset[int]]) -> CopyRow:
    background = (picture.lineage.get("background_id") or "").rsplit("-", 1)[-1]
    own = known.ids.get(background)
    if own is not None and own not in families:
        # Copies of the background that the training set holds are declared with it.
        alike = known.index.search(known.index.small[own], [own])
        families[own] = frozenset([own, *(match.row for match in alike if match.similarity >= SAME)])
    family = families.get(own, frozenset()) if own is not None else frozenset[int]()
    best, similarity = _nearest(picture, known, ())
    declared = best in family
    if declared:
        other, reached = _nearest(picture, known, family)
        if reached >= limits.whole:
            best, similarity, declared = other, reached, False
    lesion, likeness = _nearest_lesion(picture, known)
    alike = likeness is not None and likeness >= limits.lesion
    return CopyRow(
        file=picture.file,
        nearest=None if best is None else known.files[best],
        similarity=round(similarity, 4),
        is_copy=(similarity >= limits.whole and not declared) or alike,
        declared=declared,
        lesion_nearest=None if lesion is None else known.files[lesion],
        lesion_similarity=None if likeness is None else round(likeness, 4),
    )


def _nearest(picture: Picture, known: _Training, without: Collection[int]) -> tuple[int | None, float]:
    equal = known.pixels.get(pixels_sha256(picture.image))
    if equal is not None and equal not in without:
        return equal, 1.0
    found = known.index.search(picture.image, without)
    return (found[0].row, found[0].similarity) if found else (None, 0.0)


def _nearest_lesion(
    picture: Picture, known: _Training, without: Collection[int] = ()
) -> tuple[int | None, float | None]:
    chosen = np.flatnonzero(~np.isin(known.lesion_rows, list(without)))
    if picture.mask is None or not picture.mask.any() or not len(chosen):
        return None, None
    found = nearest_texture(textures(picture.image[None], picture.mask[None]), known.lesions[chosen])
    return int(known.lesion_rows[chosen[found.row[0]]]), float(found.similarity[0])


def _read(pictures: PictureSet, what: str) -> Iterator[Picture]:
    """The pictures of a set, each moving the bar."""
    with track.track(f"{STEP}: {what}", pictures.count, "pictures"):
        for picture in pictures.pictures():
            yield picture
            track.advance(f"{STEP}: {what}", 1)


def _rate(found: int, of: int) -> Rate:
    low, high = wilson(found, of)
    return Rate(found=found, of=of, share=found / of if of else None, low=low, high=high)


def _notes(limits: _Limits, held_out: bool, known: _Training) -> list[str]:
    notes: list[str] = []
    whose = "held-out" if held_out else "training"
    for what, limit, usual in (("pictures", limits.whole, COPY), ("lesions", limits.lesion, LESION_COPY)):
        if limit > usual:
            notes.append(
                f"the limit for {what} was raised from {usual:g} to {limit:.2f}: {whose} {what} resemble those of "
                "other people, or the same people are on both sides"
            )
    if limits.alarms.of < 20:
        notes.append(f"the limits rest on {limits.alarms.of} pictures alone")
    if not len(known.lesions):
        notes.append("lesions alone were not compared: the training set has no masks")
    return notes
