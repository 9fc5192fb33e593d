"""The ways bytes are kept: a folder of this machine, a bucket on S3, any other fsspec file system.

All offer the same few operations on relative keys that `storage.store` has already checked. They ask again after
passing faults; then they raise the operating system's or the library's own errors, which `storage.store` translates.
"""

import re
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fsspec import AbstractFileSystem

from storage.errors import CorruptFileError, StoreUnavailableError
from storage.folder import LocalFolder
from storage.records import Stored
from storage.retrying import passing, persist

T = TypeVar("T")

_RANGE = 8 * 2**20
_LOCAL = re.compile(r"^(file|local)://")
_one_creator = threading.Lock()
"""For backends that check and then write, as fsspec's memory does: else two threads could both win."""


class Backend(Protocol):
    """What a store needs from where it lives."""

    parallel: int
    """How many reads at once are faster than one after the other."""

    foreign: tuple[type[Exception], ...]
    """Errors of its library that are no OSError."""

    def locate(self, key: str) -> str:
        """Address of a key for people and other tools."""
        ...

    def read(self, key: str) -> bytes:
        """All bytes; FileNotFoundError where there is no such key."""
        ...

    def fill(self, key: str, start: int, view: memoryview) -> int:
        """Read from byte `start` on into all of `view`; the bytes filled, fewer only where the key ends."""
        ...

    def stream(self, key: str, start: int) -> Iterator[memoryview]:
        """The bytes from `start` on, in pieces that are overwritten once the next is asked for."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of a key, None where there is none."""
        ...

    def walk(self, prefix: str) -> Iterator[Stored]:
        """What is below a folder, at any depth; everything for ""."""
        ...

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below a folder."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write or replace, never visibly half done."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write only where nothing is; False where something was, be it an earlier try of the same call."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """As `put`, from a file of any size; nothing moves where its bytes are known to be there."""
        ...

    def staging(self) -> AbstractContextManager[Path]:
        """A folder for files on their way in, gone when its block ends."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key; one that is not there is no error."""
        ...


def connect(text: str, options: dict[str, Any], patience_s: float) -> Backend:
    """The backend of a URL or path; nothing is asked of it yet.

    Raises:
        StoreUnavailableError: nothing installed opens this URL.
    """
    if "://" not in text or _LOCAL.match(text):
        return LocalFolder(Path(_LOCAL.sub("", text)).expanduser().absolute())
    import fsspec.core  # slow to import; a local folder does not need it

    try:
        fs, root = fsspec.core.url_to_fs(text, **options)
    except (ValueError, ImportError) as error:
        raise StoreUnavailableError(f"{text} is no store this installation can open: {error}") from error
    if text.startswith(("s3://", "s3a://")):
        from storage.s3 import S3Bucket

        return S3Bucket(fs, root, text.rstrip("/"), patience_s)
    return RemoteFolder(fs, root, text.rstrip("/"), patience_s)


class RemoteFolder:
    """A prefix on any other fsspec file system: memory in tests."""

    parallel = 4
    foreign: tuple[type[Exception], ...] = ()

    def __init__(self, fs: AbstractFileSystem, root: str, shown: str, patience_s: float) -> None:
        self.fs: Any = fs
        self.root = root.rstrip("/")
        self.shown = shown
        self._patience_s = patience_s

    def locate(self, key: str) -> str:
        """URL of a key."""
        return f"{self.shown}/{key}" if key else self.shown

    def read(self, key: str) -> bytes:
        """All bytes."""
        return self._persist(lambda: self.fs.cat_file(self._path(key)))

    def fill(self, key: str, start: int, view: memoryview) -> int:
        """One range request."""
        data = self._persist(lambda: self.fs.cat_file(self._path(key), start=start, end=start + len(view)))
        view[: len(data)] = data
        return len(data)

    def stream(self, key: str, start: int) -> Iterator[memoryview]:
        """Ranges of 8 MiB."""
        view = memoryview(bytearray(_RANGE))
        while filled := self.fill(key, start, view):
            yield view[:filled]
            start += filled
            if filled < _RANGE:
                return

    def size(self, key: str) -> int | None:
        """Bytes of an object."""
        try:
            info = self._persist(lambda: self.fs.info(self._path(key)))
        except FileNotFoundError:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def walk(self, prefix: str) -> Iterator[Stored]:
        """What is below a prefix, asked of the server each time."""
        found = self._persist(lambda: self.fs.find(self._path(prefix), detail=True))
        for path, info in found.items():
            if not path.endswith("/"):
                key = path[len(self.root) :].lstrip("/")
                yield Stored(key=key, bytes=int(info["size"]), modified=self._modified(path, info))

    def folders(self, prefix: str) -> list[str]:
        """Names of the common prefixes directly below."""
        try:
            entries = self._persist(lambda: self.fs.ls(self._path(prefix), detail=True))
        except FileNotFoundError:
            return []
        paths: list[str] = [entry["name"] for entry in entries if entry["type"] == "directory"]
        return [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]

    def put(self, key: str, data: bytes) -> None:
        """One object; object stores show it whole or not at all."""
        self._persist(lambda: self.fs.pipe_file(self._path(key), data))

    def create(self, key: str, data: bytes) -> bool:
        """What the file system offers, one at a time in this process."""
        try:
            with _one_creator:
                self._persist(lambda: self.fs.pipe_file(self._path(key), data, mode="create"))
        except FileExistsError:
            return False
        return True

    def put_file(self, key: str, path: Path) -> None:
        """Upload; the size of what arrived is compared."""
        self._persist(lambda: self.fs.put_file(str(path), self._path(key)))
        arrived, expected = self.size(key), path.stat().st_size
        for wait_s in (0.05, 0.5):
            if arrived == expected:
                return
            time.sleep(wait_s)  # another publisher of the same content may have just begun to write it
            arrived = self.size(key)
        if arrived != expected:
            raise CorruptFileError(f"{self.locate(key)} arrived with {arrived} of {expected} bytes: run it again")

    @contextmanager
    def staging(self) -> Generator[Path]:
        """A folder on this machine."""
        with tempfile.TemporaryDirectory(prefix="sonoforge-") as folder:
            yield Path(folder)

    def delete(self, key: str) -> None:
        """Remove an object."""
        try:
            self._persist(lambda: self.fs.rm_file(self._path(key)))
        except FileNotFoundError:
            return

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}" if key else self.root

    def _persist(self, call: Callable[[], T]) -> T:
        return persist(call, passing, lambda: self._patience_s)

    def _modified(self, path: str, info: dict[str, Any]) -> datetime:
        for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
            value = info.get(name)
            if isinstance(value, datetime):
                return value if value.tzinfo else value.replace(tzinfo=UTC)
        return self.fs.modified(path)
