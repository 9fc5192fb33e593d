"""What a verification must remember of every row, on disk: splits of groups, ancestors, and what was drawn.

SQLite, because a version may have more groups, scans and rows than memory has room for.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

_SCHEMA = """
CREATE TABLE belongs (what TEXT, split TEXT, PRIMARY KEY (what, split)) WITHOUT ROWID;
CREATE TABLE descends (ancestor TEXT, split TEXT, role TEXT, row TEXT, PRIMARY KEY (ancestor, split, role))
    WITHOUT ROWID;
CREATE TABLE sources (id TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;
CREATE TABLE drawn (
    split TEXT, number INTEGER, id TEXT, label TEXT, sha256 TEXT, height INTEGER, width INTEGER, area INTEGER,
    x INTEGER, y INTEGER, w INTEGER, h INTEGER, counts TEXT, PRIMARY KEY (split, number)
) WITHOUT ROWID;
"""
_FEW = 30  # more lines than a list of problems shows of one thing


class Drawn(NamedTuple):
    """A kept sample as its pixels say it: the `number`th of its split, from 1.

    `area` counts the mask's pixels, 0 where there is none; x, y, w, h are its bounding box; `counts` is the start
    of the sha256 of its compressed run lengths, as COCO holds them.
    """

    split: str
    number: int
    id: str
    label: str
    sha256: str
    height: int
    width: int
    area: int
    x: int
    y: int
    w: int
    h: int
    counts: str


class Notebook:
    """A database on scratch disk, gone with its folder. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._rows = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", "cache_size=-16000"):
            self._rows.execute(f"PRAGMA {pragma}")
        self._rows.executescript(_SCHEMA)
        self._rows.execute("BEGIN")

    def __enter__(self) -> "Notebook":
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def belongs(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Note (group, split) pairs."""
        self._rows.executemany("INSERT OR IGNORE INTO belongs VALUES (?, ?)", pairs)

    def source(self, scans: Iterable[tuple[str, str]]) -> None:
        """Note (id, split) of the scans that rows descend from."""
        self._rows.executemany("INSERT OR IGNORE INTO sources VALUES (?, ?)", scans)

    def descends(self, lines: Iterable[tuple[str, str, str, str]]) -> None:
        """Note (ancestor, the row's split, which ancestor it is, the row's id)."""
        self._rows.executemany("INSERT OR IGNORE INTO descends VALUES (?, ?, ?, ?)", lines)

    def draw(self, rows: Iterable[Drawn]) -> None:
        """Note what rows show."""
        self._rows.executemany(f"INSERT OR IGNORE INTO drawn VALUES ({', '.join('?' * len(Drawn._fields))})", rows)

    def leaks(self) -> Iterator[str]:
        """Groups and ancestors that more than one split knows, as a sentence each; a few of them."""
        yield from self._lines(
            "SELECT 'group ' || what || ' is in ' || group_concat(split, ' and ') FROM belongs "
            "GROUP BY what HAVING count(*) > 1"
        )
        yield from self._lines(
            "SELECT d.role || ' ' || d.ancestor || ' of row ' || d.row || ' (' || d.split || ') is a scan of ' || "
            "coalesce(s.split, 'no split') FROM descends d JOIN sources s ON s.id = d.ancestor "
            "WHERE s.split IS NOT d.split"
        )
        yield from self._lines(
            "SELECT role || ' ' || ancestor || ' is used in ' || group_concat(split, ' and ') FROM descends "
            "WHERE ancestor NOT IN (SELECT id FROM sources) GROUP BY ancestor, role HAVING count(*) > 1"
        )

    def orphans(self) -> Iterator[str]:
        """Ancestors that are no source, as a sentence each; a few of them."""
        yield from self._lines(
            "SELECT role || ' ' || ancestor || ' of row ' || row || ' is not among the sources' FROM descends "
            "WHERE ancestor NOT IN (SELECT id FROM sources)"
        )

    def drawn(self, split: str, *, lesions: bool = False) -> Iterator[Drawn]:
        """What the rows of a split show, in their order; only those with something in their mask if `lesions`."""
        query = f"SELECT * FROM drawn WHERE split = ? {'AND area > 0' if lesions else ''} ORDER BY number"
        with closing(self._rows.execute(query, (split,))) as found:
            yield from (Drawn(*row) for row in found)

    def _lines(self, query: str) -> Iterator[str]:
        with closing(self._rows.execute(f"{query} LIMIT {_FEW}")) as found:
            yield from (str(line[0]) for line in found)
