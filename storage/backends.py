"""The two ways bytes are kept: a folder on this machine, and any other fsspec file system.

Both offer the same few operations on relative keys that `storage.store` has already checked. They raise the
operating system's or the library's own errors; `storage.store` translates them.
"""

import errno
import os
import shutil
import threading
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from fsspec import AbstractFileSystem

from storage.errors import ExclusiveCreateError

CHUNK = 8 * 2**20
"""Bytes read at a time: the most that copying a file of any size holds in memory."""

_PART = 32 * 2**20  # multipart size; with two in flight an upload holds 64 MiB
_SCRATCH = ".tmp"

_one_creator = threading.Lock()
"""For backends that check and then write, as fsspec's memory does: else two threads could both win."""


class Backend(Protocol):
    """What a store needs from where it lives."""

    def locate(self, key: str) -> str:
        """Address of a key for people and other tools."""
        ...

    def read(self, key: str) -> bytes:
        """All bytes; FileNotFoundError where there is no such key."""
        ...

    def chunks(self, key: str) -> Iterator[bytes]:
        """The bytes in pieces of at most `CHUNK`."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of a key, None where there is none."""
        ...

    def find(self, prefix: str) -> list[str]:
        """Keys below a folder, at any depth; all keys for ""."""
        ...

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below a folder."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write or replace, never visibly half done."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write only where nothing is; False where something was."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """As `put`, from a file of any size."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key; one that is not there is no error."""
        ...

    def open(self, key: str) -> Any:
        """A seekable binary file for reading."""
        ...


class LocalFolder:
    """A folder. Writes go to a temporary file first, so a killed writer never leaves a torn one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def locate(self, key: str) -> str:
        """Absolute path."""
        return str(self.root / key)

    def read(self, key: str) -> bytes:
        """All bytes."""
        return (self.root / key).read_bytes()

    def chunks(self, key: str) -> Iterator[bytes]:
        """The bytes in pieces."""
        with self.open(key) as file:
            while piece := file.read(CHUNK):
                yield piece

    def size(self, key: str) -> int | None:
        """Bytes of a file."""
        path = self.root / key
        return path.stat().st_size if path.is_file() else None

    def find(self, prefix: str) -> list[str]:
        """Keys below a folder, the scratch folder left out."""
        found: list[str] = []
        for folder, names, files in os.walk(self.root / prefix, onerror=_unless_absent):
            if _SCRATCH in names and Path(folder) == self.root:
                names.remove(_SCRATCH)
            found += [(Path(folder) / file).relative_to(self.root).as_posix() for file in files]
        return found

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below."""
        folder = self.root / prefix
        if not folder.is_dir():
            return []
        return [entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name != _SCRATCH]

    def put(self, key: str, data: bytes) -> None:
        """Temporary file, then rename."""
        with self._scratch() as temporary:
            self._write(temporary, data)
            os.replace(temporary, self._ready(key))

    def create(self, key: str, data: bytes) -> bool:
        """Temporary file, then a hard link: the link fails where the name is taken, on NFS too."""
        target = self._ready(key)
        with self._scratch() as temporary:
            self._write(temporary, data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise ExclusiveCreateError(
                        f"{self.root} is on a file system without hard links, which create-only writes need: "
                        f"use a local disk or an S3 bucket for --store"
                    ) from error
                raise
        _sync_folder(target.parent)
        return True

    def put_file(self, key: str, path: Path) -> None:
        """Copy to a temporary file, then rename."""
        with self._scratch() as temporary:
            with path.open("rb") as source, temporary.open("wb") as copy:
                shutil.copyfileobj(source, copy, CHUNK)
                copy.flush()
                os.fsync(copy.fileno())
            os.replace(temporary, self._ready(key))

    def delete(self, key: str) -> None:
        """Unlink."""
        (self.root / key).unlink(missing_ok=True)

    def open(self, key: str) -> Any:
        """The file itself."""
        return (self.root / key).open("rb")

    def _ready(self, key: str) -> Path:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @contextmanager
    def _scratch(self) -> Generator[Path]:
        folder = self.root / _SCRATCH
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / uuid.uuid4().hex
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


class RemoteFolder:
    """A prefix on any other fsspec file system: S3 above all, memory in tests."""

    def __init__(self, fs: AbstractFileSystem, root: str, shown: str) -> None:
        self.fs: Any = fs
        self.root = root.rstrip("/")
        self.shown = shown
        self.on_s3 = "s3" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))

    def locate(self, key: str) -> str:
        """URL of a key."""
        return f"{self.shown}/{key}" if key else self.shown

    def read(self, key: str) -> bytes:
        """All bytes."""
        return self.fs.cat_file(self._path(key))

    def chunks(self, key: str) -> Iterator[bytes]:
        """The bytes in pieces, one range request each."""
        with self.fs.open(self._path(key), "rb", block_size=CHUNK, cache_type="none") as file:
            while piece := file.read(CHUNK):
                yield piece

    def size(self, key: str) -> int | None:
        """Bytes of an object."""
        try:
            info = self.fs.info(self._path(key))
        except FileNotFoundError:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def find(self, prefix: str) -> list[str]:
        """Keys below a prefix, asked of the server each time."""
        return [self._key(path) for path in self.fs.find(self._path(prefix)) if not path.endswith("/")]

    def folders(self, prefix: str) -> list[str]:
        """Names of the common prefixes directly below."""
        try:
            entries = self.fs.ls(self._path(prefix), detail=True)
        except FileNotFoundError:
            if self.on_s3 and not self.fs.exists(self.root.split("/")[0]):
                raise
            return []
        paths: list[str] = [entry["name"] for entry in entries if entry["type"] == "directory"]
        return [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]

    def put(self, key: str, data: bytes) -> None:
        """One object; object stores show it whole or not at all."""
        self.fs.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """One conditional PUT (`If-None-Match: *`): never multipart, where servers ignore the condition."""
        try:
            with nullcontext() if self.on_s3 else _one_creator:
                self.fs.pipe_file(self._path(key), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # Ceph leaves out <Condition>, so s3fs does not recognise its refusal.
            if error_code(error) == "PreconditionFailed":
                return False
            raise
        return True

    def put_file(self, key: str, path: Path) -> None:
        """Upload, in parts above 64 MiB."""
        options = {"chunksize": _PART, "max_concurrency": 2} if self.on_s3 else {}
        self.fs.put_file(str(path), self._path(key), **options)

    def delete(self, key: str) -> None:
        """Remove an object."""
        try:
            self.fs.rm_file(self._path(key))
        except FileNotFoundError:
            return

    def open(self, key: str) -> Any:
        """A file that asks for exactly the ranges that are read: pyarrow joins and buffers them itself."""
        return self.fs.open(self._path(key), "rb", cache_type="none")

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}" if key else self.root

    def _key(self, path: str) -> str:
        return path[len(self.root) :].lstrip("/")


def error_code(error: BaseException) -> str | None:
    """S3's own code of an error from s3fs or botocore, such as "NoSuchBucket"; else None."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response.get("Error", {}).get("Code")
    return None


def _unless_absent(error: OSError) -> None:
    """What `os.walk` would pass over in silence: a folder that may not be read."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
