"""A marker painted where the mask is stays exactly there: at 0 px error, on every way that a pair is moved.

The picture shows its own mask: white inside, black outside, so that wherever it goes, the mask can be read
off it again. One wrong flip, crop or resize, and the two differ.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from storage.formats import coco, parquet
from storage.images import decode_grey, decode_mask
from storage.records import Ref, sample_schema
from tasks.imaging import Grey, Mask, flip, letterbox
from tasks.synthesis import Draft, Tools, harmonize
from tasks.synthesis.diffusion import examples, window
from tasks.synthesis.diffusion.base import Base
from tasks.synthesize import Generator, row_of
from tests.fakes.drafts import drafts

TISSUE, MARKER = 0, 255  # the levels that a mask is resampled with, so that even ties round alike


def marked(side: int, top: int, left: int, height: int, width: int) -> tuple[Grey, Mask]:
    """A picture and its mask: a box with one corner cut off, so that no mirroring or turn leaves it as it was."""
    mask = np.zeros((side, side), np.bool_)
    mask[top : top + height, left : left + width] = True
    mask[top : top + height // 2, left : left + width // 3] = False
    return np.where(mask, MARKER, TISSUE).astype(np.uint8), mask


def read_off(image: Grey) -> Mask:
    """The mask that a marked picture shows; the cut at one half is that of `letterbox` and `window`."""
    return image >= 128


BOXES = {
    "side": st.integers(40, 140),
    "top": st.floats(0, 1),
    "left": st.floats(0, 1),
    "height": st.integers(6, 36),
    "width": st.integers(6, 36),
}


def boxed(side: int, top: float, left: float, height: int, width: int) -> tuple[Grey, Mask]:
    return marked(side, round(top * (side - height)), round(left * (side - width)), height, width)


@settings(max_examples=50, deadline=None)
@given(**BOXES)
def test_the_marker_moves_with_its_mask_when_a_pair_is_mirrored(**box: Any) -> None:
    image, mask = boxed(**box)
    mirrored, moved = flip(image, mask)
    assert moved is not None
    np.testing.assert_array_equal(read_off(mirrored), moved)
    assert not np.array_equal(moved, mask) or np.array_equal(mask, mask[:, ::-1])


@settings(max_examples=50, deadline=None)
@given(scale=st.sampled_from([1, 2, 4]), wider=st.integers(0, 40), **BOXES)
def test_the_marker_moves_with_its_mask_when_a_pair_is_fitted(scale: int, wider: int, **box: Any) -> None:
    image, mask = boxed(**box)
    image, mask = (np.pad(part, ((0, 0), (0, wider)), mode="edge") for part in (image, mask))
    large, large_mask = (np.kron(part, np.ones((scale, scale), part.dtype)) for part in (image, mask))
    fitted = letterbox(large, large_mask, max(image.shape))
    assert fitted.mask is not None
    np.testing.assert_array_equal(read_off(fitted.image), fitted.mask)
    assert fitted.mask.sum() == mask.sum()


@settings(max_examples=50, deadline=None)
@given(px=st.sampled_from([32, 64, 96]), **BOXES)
def test_the_marker_moves_with_its_mask_into_the_window_and_back(px: int, **box: Any) -> None:
    image, mask = boxed(**box)
    view = window.around(mask, px)
    np.testing.assert_array_equal(read_off(window.cut(image, view)), window.cut_mask(mask, view))
    if view.side == view.px:  # not resampled: every pixel comes back to its place
        blank = np.full_like(image, TISSUE)
        np.testing.assert_array_equal(window.paste(blank, window.cut(image, view), view), image)


@settings(max_examples=50, deadline=None)
@given(px=st.sampled_from([32, 64]), **BOXES)
def test_the_marker_moves_with_its_mask_into_what_an_adapter_learns_from(px: int, **box: Any) -> None:
    image, mask = boxed(**box)
    shown = examples.views(examples.Example(image, mask, "benign", hole=mask), px)
    for seen, hole in zip(shown.images, shown.holes, strict=True):
        np.testing.assert_array_equal(read_off(seen), hole)
    np.testing.assert_array_equal(shown.holes[0], shown.holes[1][:, ::-1])
    grown = examples.views(examples.Example(image, mask, "benign"), px)
    for seen, hole in zip(grown.images, grown.holes, strict=True):
        assert hole[read_off(seen)].all()
        np.testing.assert_array_equal(window.hole(read_off(seen), px), hole)


@settings(max_examples=50, deadline=None)
@given(px=st.sampled_from([32, 64]), **BOXES)
def test_the_marker_moves_with_its_mask_into_what_a_pair_is_learned_from(px: int, **box: Any) -> None:
    image, mask = boxed(**box)
    shown = examples.views(examples.Example(image, mask, "head", joint=True), px)
    for seen in shown.images:
        np.testing.assert_array_equal(read_off(seen[..., 0]), seen[..., 2] == 255)
        np.testing.assert_array_equal(seen[..., 0], seen[..., 1])
    np.testing.assert_array_equal(shown.images[0], shown.images[1][:, ::-1])
    assert shown.holes.all()


def test_the_marker_stays_at_its_mask_through_harmonize(inpainting_base: Base) -> None:
    """With nothing redrawn outside the region, the marker is bit for bit where it was."""
    image, mask = marked(96, 40, 30, 16, 20)
    rows, columns = np.mgrid[:96, :96]
    background = np.where((rows + columns) % 7 == 0, 60, 140).astype(np.uint8)  # a pattern in every place
    (draft,) = drafts(1, background)
    lesion: Draft = replace(draft, image=np.where(mask, image, background), mask=mask, region=window.hole(mask, 32))
    params = harmonize.Params(steps=1, strength=0.01)
    (made,) = harmonize.apply(params, [lesion], Tools(base=inpainting_base, adapters={}, donors=[]))
    assert made.failure is None
    assert made.region is not None
    assert made.mask is not None
    np.testing.assert_array_equal(made.mask, mask)
    assert made.region[mask].all()
    np.testing.assert_array_equal(made.image[~made.region], background[~made.region])


# pycocotools 2.0.11 with NumPy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_the_marker_lies_at_its_mask_in_what_is_published(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    none, adapter = Ref(key="none", sha256="0" * 64), Ref(key="adapter", sha256="a" * 64, rows=1)
    generator = Generator(base="embedded", decoder=none, adapters={"benign": adapter}, harmonizer=none, stages=[])
    for number, draft in enumerate(drafts(5, np.zeros((48, 48), np.uint8))):
        image, mask = marked(48, 5 + number, 30 - 6 * number, 9 + number, 12)
        drawn = replace(draft, image=image, mask=mask, region=mask, background_kind="synthetic")
        published = {"verdict": "kept", "reasons": [], "licence": "none", "recipe_digest": "cafe"}
        rows.append(row_of(drawn, "phantom", generator) | published)
    schema = sample_schema([])
    table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema=schema)
    parquet.write(table.to_batches(), tmp_path)
    coco.write(tmp_path, tmp_path)
    read = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "data").glob("*.parquet")]).to_pylist()
    assert len(read) == 5
    masks: dict[str, Mask] = {}
    for row in read:
        masks[row["id"]] = read_off(decode_grey(row["image"]["bytes"]))
        np.testing.assert_array_equal(masks[row["id"]], decode_mask(row["mask"]["bytes"]))
        np.testing.assert_array_equal(masks[row["id"]], decode_mask(row["region"]["bytes"]))
        assert not decode_grey(row["background"]["bytes"]).any()
    annotated = COCO(str(tmp_path / "coco" / "train.json"))
    assert len(annotated.imgs) == 5
    for image in annotated.imgs.values():
        (annotation,) = annotated.loadAnns(annotated.getAnnIds(imgIds=[image["id"]]))
        found = annotated.annToMask(annotation).astype(bool)
        np.testing.assert_array_equal(found, masks[Path(image["file_name"]).stem])


@pytest.mark.parametrize("moved", [(0, 1), (1, 0)])
def test_a_marker_one_pixel_off_would_be_noticed(moved: tuple[int, int]) -> None:
    image, mask = marked(64, 20, 20, 12, 16)
    assert not np.array_equal(read_off(np.roll(image, moved, (0, 1))), mask)
