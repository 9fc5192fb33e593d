"""Rows of a version as a data set for torch: the one module of `storage` that imports it, and only when asked."""

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from storage.listing import Listing
from storage.pictures import Pictures
from storage.reading import Row, Version, decoded
from storage.records import PIXEL_COLUMNS, Manifest
from storage.store import Store


class VersionDataset(Dataset[Any]):
    """Map style: item `i` is row `i`, fetched when asked for. See `Version.torch`.

    It pickles as addresses and paths, so workers may be forked or spawned; each opens the store for itself.
    """

    def __init__(
        self,
        version: Version | None,
        store: Store,
        manifest: Manifest,
        listing: Listing,
        columns: Sequence[str],
        pictures: Sequence[str],
        transform: Callable[[Row], Any] | None,
    ) -> None:
        self._version = version  # keeps the listing's file; a worker does without
        self._store, self._manifest, self._listing = store, manifest, listing
        self._columns, self._pictures = columns, pictures
        self._transform = transform or _tensors
        self._source: Pictures | None = None
        self._opened_by = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        transform = None if self._transform is _tensors else self._transform
        shared = (self._store, self._manifest, self._listing, self._columns, self._pictures, transform)
        return VersionDataset, (None, *shared)

    def __len__(self) -> int:
        return len(self._listing)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several items with one round of requests: what a `DataLoader` calls for a batch."""
        positions = [int(index) + (len(self) if index < 0 else 0) for index in indices]
        rows, places = self._listing.take(positions)
        found = self._pictures_here().fetch(places, self._pictures)
        return [self._transform(row) for row in decoded(rows, found, self._columns)]

    def _pictures_here(self) -> Pictures:
        """Where pictures come from; connections are never shared with the process that this one was forked from."""
        if self._source is None or self._opened_by != os.getpid():
            store = self._store if self._opened_by == os.getpid() else copy.copy(self._store)
            self._source, self._opened_by = Pictures(store, self._manifest), os.getpid()
        return self._source


def _tensors(row: Row) -> Row:
    """Pictures as tensors (1, h, w); a mask that is not there is blank."""
    shape = next((row[name].shape for name in PIXEL_COLUMNS if row.get(name) is not None), None)
    made = dict(row)
    for name in PIXEL_COLUMNS:
        if name in row:
            picture = row[name]
            if picture is None and name in ("mask", "region") and shape is not None:
                picture = np.zeros(shape, np.bool_)
            made[name] = None if picture is None else torch.from_numpy(np.array(picture))[None]
    return made
