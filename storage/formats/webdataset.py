"""WebDataset tar shards, made from the exported Parquet, for training loops that stream.

`webdataset/<split>-000000.tar` holds, for every sample in order of id, `<id>.png`, `<id>.mask.png` where there is
a mask, and `<id>.json`: all columns but the pictures. There is no date, owner or machine in them: the same rows
make the same bytes.

Format: https://github.com/webdataset/webdataset. A name is split at its first dot: key before, field behind.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.formats.hashed import HashedFile
from storage.formats.parquet import read_rows, shards_of
from storage.records import PIXEL_COLUMNS, Written

SHARD_BYTES = 480 * 10**6

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}")
_BLOCK = tarfile.BLOCKSIZE


def write(parquet: Path, folder: Path) -> dict[str, Written]:
    """Write `webdataset/<split>-<number>.tar` for every split that `parquet` holds.

    Args:
        parquet: a folder filled by `storage.formats.parquet.write`.
        folder: where `webdataset/` goes.

    Returns:
        What was written (`rows` counts samples), by its path in `folder`.

    Raises:
        ValueError: an id that readers would split, or that could lead out of a folder.
    """
    written: dict[str, Written] = {}
    for split, paths in shards_of(parquet).items():
        (folder / "webdataset").mkdir(parents=True, exist_ok=True)
        samples = (_members(row) for row in read_rows(paths))
        members = next(samples, None)
        while members is not None:
            name = f"webdataset/{split}-{sum(path.startswith(f'webdataset/{split}-') for path in written):06d}.tar"
            written[name], members = _write_shard(folder / name, members, samples)
    return written


Members = list[tuple[str, bytes]]
"""Names and contents of the files of one sample."""


def _write_shard(path: Path, members: Members, samples: Iterator[Members]) -> tuple[Written, Members | None]:
    """Write samples until the shard is full; what was written, and the sample that did not fit."""
    size = count = 0
    following: Members | None = members
    file = HashedFile(path)
    sink: Any = file  # a stream needs no more of a file than `write`
    with file, tarfile.open(fileobj=sink, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        while following is not None:
            more = sum(_BLOCK + -(-len(content) // _BLOCK) * _BLOCK for _, content in following)
            if count and size + more > SHARD_BYTES:
                break
            for name, content in following:
                described = tarfile.TarInfo(name)
                described.size = len(content)
                tar.addfile(described, io.BytesIO(content))
            tar.getmembers().clear()  # it would keep all of them until the end
            size, count = size + more, count + 1
            following = next(samples, None)
    return Written(rows=count, sha256=file.sha256), following


def _members(row: dict[str, Any]) -> Members:
    key = row["id"]
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"the id {key!r} cannot be a key of WebDataset, which splits names at the first dot: expected up to 200 "
            "of A-Z a-z 0-9 _ -, starting with a letter or digit"
        )
    plain = {name: value for name, value in row.items() if name not in PIXEL_COLUMNS}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    if row["image"] is None or row["image"]["bytes"] is None:
        raise ValueError(f"the row {key} has no image")
    members = [(f"{key}.json", text.encode()), (f"{key}.png", row["image"]["bytes"])]
    if row["mask"] is not None and row["mask"]["bytes"] is not None:
        members.append((f"{key}.mask.png", row["mask"]["bytes"]))
    return members
