"""Samples for the storage benchmarks: speckle with an ellipse as its mask, in one Arrow stream read in batches."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from storage import images
from storage.records import Written, sample_schema
from storage.versions import About

SCORE = "classifier_confidence"
"""i * 7919 mod n / n for the i-th of n rows: below x for a share x of them, scattered over all groups and files."""

SCHEMA = sample_schema([SCORE])
_BATCH = 32
_FIELDS = 40


def write(path: Path, count: int, px: int, critic: float = 0.5) -> None:
    """Write `count` kept samples of `px` x `px` pixels; those of 512 take 250 KB each, which no compression reduces.

    Args:
        path: an Arrow stream.
        count: rows.
        px: height and width.
        critic: of every tenth row: with another one, a version differs in these.
    """
    with (
        ProcessPoolExecutor(2, initializer=_draw_fields, initargs=(px,)) as pool,
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, SCHEMA) as writer,
    ):
        starts = range(0, count, _BATCH)
        for encoded in pool.map(_encoded, [range(start, min(start + _BATCH, count)) for start in starts], chunksize=4):
            rows = [_row(index, count, critic, *pictures) for index, pictures in encoded]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


def mapped(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of such a file, as the page cache holds them: nothing is read again where there is memory."""
    with pa.memory_map(str(path)) as file:
        yield from pa.ipc.open_stream(file)


def streamed(path: Path) -> Iterator[pa.RecordBatch]:
    """The same, one batch in memory: what is mapped would count as memory that the reader takes."""
    with pa.OSFile(str(path)) as file:
        yield from pa.ipc.open_stream(file)


def about(count: int, written: dict[str, Written]) -> About:
    """What a publisher says of `count` kept rows."""
    return About(
        planned=count,
        kept=count,
        rejected={},
        failed=0,
        scores=[],
        licences=["CC0-1.0"],
        recipe={"name": "benchmark", "count": count},
        provenance={},
        written=written,
    )


_fields: list[NDArray[np.float32]] = []


def _draw_fields(px: int) -> None:
    rng = np.random.default_rng(px)
    y, x = np.mgrid[:px, :px] / px
    for index in range(_FIELDS):
        envelope = 0.5 + 0.3 * np.sin(9 * x + index) * np.cos(7 * y)
        _fields.append((rng.rayleigh(70, (px, px)) * envelope).astype(np.float32))


def _encoded(indices: range) -> list[tuple[int, tuple[bytes, bytes]]]:
    return [(index, _pictures(index)) for index in indices]


def _pictures(index: int) -> tuple[bytes, bytes]:
    """Image and mask as PNG; no two images are equal."""
    rng = np.random.default_rng(index)
    field = _fields[index % _FIELDS]
    px = len(field)
    shifted = np.roll(field, rng.integers(px, size=2), (0, 1)) * rng.uniform(0.9, 1.1)
    y, x = np.mgrid[:px, :px] / px
    centre, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.08, 0.2)
    mask = ((x - centre[0]) / radius) ** 2 + ((y - centre[1]) / (0.7 * radius)) ** 2 < 1
    image = io.BytesIO()
    Image.fromarray(np.clip(shifted, 0, 255).astype(np.uint8)).save(image, "PNG", compress_level=1)
    return image.getvalue(), images.encode_mask(mask)


def _row(index: int, count: int, critic: float, image: bytes, mask: bytes) -> dict[str, object]:
    name = f"syn-{index:08d}"
    return {
        "id": name,
        "image": {"bytes": image, "path": f"{name}.png"},
        "mask": {"bytes": mask, "path": f"{name}-mask.png"},
        "label": ("benign", "malignant", "normal")[index % 3],
        "organ": "breast",
        "dataset": "benchmark",
        "group": f"g{index // 2}",
        "split": "train" if index // 2 % 10 < 8 else ("val", "test")[index // 2 % 2],
        "sha256": hashlib.sha256(image).hexdigest(),
        "background_id": f"scan-{index % 777:05d}",
        "background_kind": "real",
        "mask_id": f"mask-{index % 333:05d}",
        "margin": "spiculated",
        "orientation": "parallel",
        "base_digest": "ab" * 32,
        "adapter_digest": "cd" * 32,
        "prompt": "ultrasound of breast, malignant",
        "sampler": "dpmsolver++",
        "steps": 20,
        "guidance": 3.0,
        "seed": index,
        "candidates": 4,
        "critic": critic if index % 10 == 0 else 0.5,
        "outside_changed_px": 0,
        SCORE: index * 7919 % count / count,
        "recipe_digest": "ef" * 32,
        "licence": "CC0-1.0",
        "verdict": "kept",
        "reasons": [],
    }
