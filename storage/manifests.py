"""Find and read the manifests of a dataset."""

import difflib
from collections.abc import Iterator

from storage import keys
from storage.errors import CorruptFileError
from storage.numbered import highest, read_all
from storage.records import Manifest
from storage.sealed import read_sealed
from storage.store import Store


def datasets(store: Store) -> list[str]:
    """Names under which versions may be published in a store, sorted."""
    return [name for name in store.folders() if keys.may_be_dataset(name) and "versions" in store.folders(name)]


def read(store: Store, dataset: str, version: int) -> Manifest:
    """The manifest of one version; FileNotFoundError where there is none."""
    key = keys.manifest_key(dataset, version)
    manifest = read_sealed(store, key, Manifest)
    if (manifest.dataset, manifest.version) != (dataset, version):
        raise CorruptFileError(f"{store.uri(key)} calls itself {manifest.dataset}@{manifest.version}")
    return manifest


def top(store: Store, dataset: str) -> int:
    """The highest version, retracted or not; 0 where there is none."""
    names = store.folders(f"{keys.check_name(dataset)}/versions")
    listed = [int(name) for name in names if name.isdecimal() and name[0] != "0"]
    return highest(listed, lambda number: store.exists(keys.manifest_key(dataset, number)))


def every(store: Store, dataset: str) -> Iterator[Manifest]:
    """All versions of a dataset, retracted ones too, by number."""
    return read_all(range(1, top(store, dataset) + 1), lambda number: read(store, dataset, number))


def absent(store: Store, dataset: str) -> str:
    """What to tell somebody who asks for a dataset without versions: the nearest that have some."""
    present = datasets(store)
    near = difflib.get_close_matches(dataset, present, 5, 0.5) or present[:5]
    advice = f"did you mean {', '.join(near)}?" if near else "it holds no versions yet: publish with `sonoforge build`"
    return f"there is no dataset {dataset!r} in {store.url}: {advice}"
