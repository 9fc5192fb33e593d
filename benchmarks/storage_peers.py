"""What the storage benchmarks compare with: the disk itself, `datasets`, s3fs, the AWS command line, plain Parquet."""

import mmap
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import MemoryMappedTable
from numpy.typing import NDArray

from benchmarks import storage_data
from storage import images
from storage.formats import parquet
from storage.records import parquet_options

GROUP_ROWS = 100
"""Rows of a row group where readers of single rows are thought of, as `datasets` once wrote images."""

Pngs = tuple[bytes, bytes]
Pair = tuple[NDArray[np.uint8], NDArray[np.bool_]]


def raw_write(sources: Sequence[Path], target: Path) -> None:
    """The bytes of some files, one after the other, into one file, and to the disk."""
    with target.open("wb", buffering=0) as file:
        for source in sources:
            with source.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as content:
                view = memoryview(content)
                for start in range(0, len(view), 8 * 2**20):
                    file.write(view[start : start + 8 * 2**20])
                view.release()
        os.fsync(file.fileno())


def hugging_face(samples: Path) -> datasets.Dataset:
    """The samples as `datasets` holds them: memory-mapped, with pictures as Images."""
    features = datasets.Features.from_dict(parquet.features(storage_data.SCHEMA))
    table = MemoryMappedTable.from_file(str(samples))
    return datasets.Dataset(table, datasets.DatasetInfo(features=features))


def to_parquet(samples: datasets.Dataset, target: Path) -> None:
    """`Dataset.to_parquet`, and to the disk."""
    target.mkdir()
    samples.to_parquet(target / "train.parquet")
    _to_disk(target)


def save_to_disk(samples: datasets.Dataset, target: Path) -> None:
    """`Dataset.save_to_disk`, and to the disk."""
    samples.save_to_disk(target)
    _to_disk(target)


def write_groups(samples: Path, target: Path) -> None:
    """One Parquet file with row groups of 100 rows, otherwise written as our own."""
    table = pa.Table.from_batches(storage_data.mapped(samples), storage_data.SCHEMA)
    with pq.ParquetWriter(target, table.schema, **parquet_options(table.schema)) as writer:
        for start in range(0, len(table), GROUP_ROWS):
            writer.write_table(table.slice(start, GROUP_ROWS))


def rows_of_groups(file: Any, ids: Sequence[str]) -> list[Pngs]:
    """Image and mask of some rows: the ids first, then every row group that holds one of them, once."""
    table = pq.ParquetFile(file, pre_buffer=True)
    place = {name: index for index, name in enumerate(table.read(["id"]).column("id").to_pylist())}
    found: dict[str, Pngs] = {}
    for group in sorted({place[name] // GROUP_ROWS for name in ids}):
        read = table.read_row_group(group, ["id", "image", "mask"])
        for name in ids:
            if place[name] // GROUP_ROWS == group:
                row = read.slice(place[name] % GROUP_ROWS, 1).to_pylist()[0]
                found[name] = row["image"]["bytes"], row["mask"]["bytes"]
    return [found[name] for name in ids]


def decoded(pictures: Sequence[Pngs]) -> list[Pair]:
    """The pixels of images and masks."""
    return [(images.decode_grey(image), images.decode_mask(mask)) for image, mask in pictures]


def aws(program: str, *arguments: str) -> None:
    """One call of the AWS command line; RuntimeError with what it says where it fails."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-1000:]}")


def aws_copy(program: str, source: str, target: str) -> None:
    """`aws s3 cp --recursive`."""
    aws(program, "s3", "cp", "--recursive", "--only-show-errors", source, target)


def _to_disk(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
