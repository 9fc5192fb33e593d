"""WebDataset shards: the same rows, pictures and columns as the tables say, in the same order.

Tar headers are read here block by block: `tarfile` follows extensions of the format that need any amount of memory.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from storage import images
from storage.checks.problems import Problems
from storage.checks.tables import Rows, begins, equals
from storage.checks.thin import INDEX, METADATA

_BLOCK = tarfile.BLOCKSIZE
_LARGEST = 256 * 2**20  # of a member: a picture, or the columns of a row
_LONGEST_NAME = 512
_ROWS = 256


class SplitTars:
    """The shards of one split, to be given in their order.

    Args:
        split: which.
        tables: metadata and index by name.
        problems: what is wrong.
    """

    def __init__(self, split: str, tables: dict[str, Path], problems: Problems) -> None:
        self._problems = problems
        self._expected = _expected(split, tables)

    def check(self, path: str, local: Path, samples: int | None) -> None:
        """Check the file `local`, called `path` in the version, which is said to hold so many samples."""
        found = 0
        try:
            with local.open("rb") as file:
                for name, content in _members(file):
                    expected = next(self._expected, None)
                    found += name.endswith(".json")
                    wrong = "belongs to no row" if expected is None else _wrong(name, content, *expected)
                    if wrong:
                        self._problems.add(path, f"member {name[:200]!r} {wrong}")
                        return  # those behind it may be out of step
        except (ValueError, OSError) as error:
            self._problems.add(path, f"is no tar shard: {error}")
        if samples is not None and found != samples:
            self._problems.add(path, f"{found} samples, {samples} declared")

    def finish(self, split: str) -> None:
        """After the last shard: that none was missing."""
        missing = next(self._expected, None)
        if missing is not None:
            self._problems.add(f"webdataset/{split}", f"{missing[0]} and those behind it are in no shard")


Expected = tuple[str, bytes | dict[str, Any]]
"""Name of a member, and its picture's digest or what its JSON says."""


def _expected(split: str, tables: dict[str, Path]) -> Iterator[Expected]:
    rows = Rows(tables[METADATA], keep=equals("split", split))
    places = Rows(tables[INDEX], keep=begins("file", f"data/{split}-"))
    while (batch := rows.take(_ROWS)) is not None and (place := places.take(_ROWS)) is not None:
        for row, at in zip(batch.to_pylist(), place.to_pylist(), strict=False):
            yield f"{row['id']}.json", row
            yield f"{row['id']}.png", at["image_blake3"] or b""
            if at["mask_blake3"] is not None:
                yield f"{row['id']}.mask.png", at["mask_blake3"]


def _wrong(name: str, content: bytes, expected: str, said: bytes | dict[str, Any]) -> str:
    if name != expected:
        return f"stands where {expected} is expected"
    if isinstance(said, bytes):
        return "" if images.png_digest(content) == said else "is not the picture of its row"
    try:
        return "" if json.loads(content) == said else "differs from metadata.parquet"
    except (ValueError, RecursionError):
        return "is no JSON"


def _members(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Name and content of each plain file of a tar; ValueError where it holds anything else."""
    long_name = None
    while (header := file.read(_BLOCK)).strip(b"\0"):
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(str(error)) from error
        longest = _LONGEST_NAME if info.type == tarfile.GNUTYPE_LONGNAME else _LARGEST
        if not 0 <= info.size <= longest:
            raise ValueError(f"{info.name[:100]!r} has {info.size} bytes: at most {longest} are read")
        content = file.read(info.size)
        if len(content) < info.size:
            raise ValueError(f"{info.name[:100]!r} is cut off")
        file.read(-info.size % _BLOCK)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(f"{info.name[:100]!r} is no plain file")
        yield long_name or info.name, content
        long_name = None
