"""Read a version where it lies: its table in pandas, its rows with pictures, a data set for torch.

>>> version = open_version("demo@latest", "s3://bucket/datasets")  # doctest: +SKIP
>>> frame = version.metadata(where="label = 'malignant'")  # doctest: +SKIP
>>> for row in version.rows(["id", "image", "mask"], split="train"): ...  # doctest: +SKIP

Nothing is pulled: the thin tables are fetched once, and of the pictures those that are looked at, each checked.
"""

import os
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pyarrow as pa

from storage import images, listing, retractions
from storage.errors import SelectionError
from storage.filtering import INDEX, METADATA
from storage.listing import Listing
from storage.pictures import Chunk, Pictures, chunks
from storage.pulling import fetch_file
from storage.records import PIXEL_COLUMNS, Manifest
from storage.selecting import check_column, opened, select, select_places
from storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from storage.torch_dataset import VersionDataset

Item = TypeVar("Item")
T = TypeVar("T")

Row = dict[str, Any]
"""Columns by name. `image`, `background`: uint8 arrays (h, w); `mask`, `region`: bool ones; None where absent."""

_AHEAD = 2  # chunks of at most 16 MiB on their way, and pictures being decoded, while one is read
_GREY = ("image", "background")


def open_version(name: str, store: Store | str | Path = "./store") -> "Version":
    """A version by its name: "demo@3", "demo@latest", "demo@<channel>" or "demo@sha256:<prefix>".

    Raises:
        VersionNotFoundError: there is none.
        RetractedError: it was retracted; the message says why.
    """
    from storage.versions import open_manifest

    opened_store = store if isinstance(store, Store) else Store(store)
    return Version(opened_store, open_manifest(opened_store, name))


class Version:
    """A published version, read row by row. What it keeps on this machine goes when it is closed or dropped.

    Raises:
        RetractedError: it was retracted.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        retractions.refuse(store, manifest)
        self.manifest = manifest
        self._store = store
        self._files = {file.path: file for file in manifest.files}
        self._folder = Path(tempfile.mkdtemp(prefix="sonoforge-"))
        self._lock = threading.RLock()
        self._listed: Listing | None = None
        self._lists = 0
        self.close = weakref.finalize(self, _remove, self._folder, os.getpid())
        """Remove what was fetched; the version is of no use afterwards."""

    def __repr__(self) -> str:
        return f"Version({self.manifest.dataset}@{self.manifest.version} in {self._store.url})"

    def __len__(self) -> int:
        return self.manifest.kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def columns(self) -> list[str]:
        """The columns of a row: `id`, pictures, everything else."""
        with opened(self._table(METADATA)) as table:
            thin = table.schema_arrow.names
        place = thin.index("id") + 1
        return [*thin[:place], *PIXEL_COLUMNS, *thin[place:]]

    def metadata(
        self, columns: Sequence[str] | None = None, where: str | None = None, split: str | None = None
    ) -> "pd.DataFrame":
        """The table without pictures.

        Args:
            columns: those wanted, in this order; all where None. No others are decoded.
            where: a condition, such as "label = 'malignant' and segmenter_dice > 0.9" (see `selecting.Condition`).
            split: train, val or test; all where None.
        """
        found = list(select(self._table(METADATA), where, split, columns))
        if found:
            return pa.Table.from_batches(found).to_pandas()
        with opened(self._table(METADATA)) as table:
            return table.schema_arrow.empty_table().select(columns or table.schema_arrow.names).to_pandas()

    def rows(
        self, columns: Sequence[str] | None = None, where: str | None = None, split: str | None = None
    ) -> Iterator[Row]:
        """Rows in order of their ids; while one is looked at, the next are fetched. Arguments as of `metadata`.

        Only pictures that `columns` names are fetched; all four where it is None.
        """
        wanted, thin, pictures = self._wanted(columns)
        if not pictures:
            for batch in select(self._table(METADATA), where, split, wanted):
                yield from batch.to_pylist()
            return
        source = Pictures(self._store, self.manifest)
        chosen = select_places(self._table(METADATA), self._table(INDEX), where, split, thin)
        fetched = _ahead(lambda chunk: (chunk[0], source.fetch(chunk[1], pictures)), chunks(chosen, pictures))
        for rows, found in fetched:
            yield from decoded(rows, found, wanted)

    def row(self, id: str, columns: Sequence[str] | None = None) -> Row:
        """One row; of the pictures, only its own travel. LookupError where there is none."""
        return self.take([id], columns)[0]

    def take(self, ids: Sequence[str], columns: Sequence[str] | None = None) -> list[Row]:
        """Some rows, in the order given, their pictures fetched together. LookupError where one is not there."""
        wanted, _, pictures = self._wanted(columns)
        listed = self._all()
        positions: list[int] = []
        for id in ids:
            position = listed.find(id)
            if position is None:
                raise LookupError(f"{self.manifest.dataset}@{self.manifest.version} has no row {id!r}")
            positions.append(position)
        rows, places = listed.take(positions)
        source = Pictures(self._store, self.manifest)
        return list(decoded(rows, source.fetch(places, pictures), wanted))

    def torch(
        self,
        split: str | None = None,
        where: str | None = None,
        transform: Callable[[Row], Any] | None = None,
        columns: Sequence[str] | None = ("id", "image", "mask", "label"),
    ) -> "VersionDataset":
        """A map-style `torch.utils.data.Dataset`, for any `DataLoader`: workers fetch what they need themselves.

        Args:
            split: train, val or test; all where None.
            where: a condition; see `metadata`.
            transform: makes an item of a row, which is as `rows` gives it. Without one an item is a dict of the
                columns, with pictures as tensors (1, h, w): grey ones uint8, masks bool and blank where there is none.
            columns: of the rows; None for all.

        Raises:
            SelectionError: no row is wanted.
        """
        from storage.torch_dataset import VersionDataset

        wanted, thin, pictures = self._wanted(columns)
        chosen = select_places(self._table(METADATA), self._table(INDEX), where, split, thin)
        listed = self._list(chosen)
        if not listed:
            raise SelectionError(
                f"no row of {self.manifest.dataset}@{self.manifest.version} ({len(self)} rows) is in split {split} "
                f"and meets {where!r}"
            )
        return VersionDataset(self, self._store, self.manifest, listed, wanted, pictures, transform)

    def _wanted(self, columns: Sequence[str] | None) -> tuple[list[str], list[str], list[str]]:
        """Columns as asked for; those to read of the thin table; pictures."""
        known = self.columns
        wanted = list(columns) if columns is not None else known
        for name in wanted:
            check_column(name, known)
        thin = [name for name in wanted if name not in PIXEL_COLUMNS]
        return wanted, list(dict.fromkeys(["id", *thin])), [name for name in wanted if name in PIXEL_COLUMNS]

    def _table(self, name: str) -> Path:
        """A thin table on this machine, fetched at the first call."""
        path = self._folder / name
        with self._lock:
            if not path.exists():
                if name not in self._files:
                    raise SelectionError(
                        f"{self.manifest.dataset}@{self.manifest.version} was published without {name}, so its rows "
                        "cannot be read one by one: pull it whole"
                    )
                fetch_file(self._store, self._files[name], self._folder / f"{name}.arriving", path)
        return path

    def _all(self) -> Listing:
        """All rows, listed at the first call."""
        with self._lock:
            if self._listed is None:
                self._listed = self._list(select_places(self._table(METADATA), self._table(INDEX)))
            return self._listed

    def _list(self, chosen: Iterator[Chunk]) -> Listing:
        with self._lock:
            self._lists += 1
            path = self._folder / f"{self._lists}.arrow"
        listing.write(path, chosen)
        return Listing(path)


def decoded(rows: pa.RecordBatch, pictures: dict[str, list[bytes | None]], columns: Sequence[str]) -> Iterator[Row]:
    """Thin rows and encoded pictures as rows, one after the other; the next are decoded meanwhile."""
    thin = rows.to_pylist()

    def made(number: int) -> Row:
        row = thin[number]
        for name, found in pictures.items():
            data = found[number]
            decode = images.decode_grey if name in _GREY else images.decode_mask
            row[name] = None if data is None else decode(data)
        return {name: row[name] for name in columns}

    return _ahead(made, range(len(thin))) if len(thin) > 1 else map(made, range(len(thin)))


def _ahead(function: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
    """Results in order, of calls that begin before they are asked for."""
    running: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(_AHEAD)
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > _AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked worker drops its copy of a version, not its owner's files
        shutil.rmtree(folder, ignore_errors=True)
