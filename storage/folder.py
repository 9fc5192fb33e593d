"""A store in a folder of this machine, or of a network file system."""

import errno
import fcntl
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from storage.errors import ExclusiveCreateError
from storage.records import Stored

_SCRATCH = ".tmp"
_READ = 2**20  # small enough to stay in the processor's cache until it is hashed
_COPIED_AT_ONCE = 8 * 2**20
_ABANDONED_S = 24 * 3600.0  # what is this old in the scratch folder, and locked by nobody, was left by a killed writer


class LocalFolder:
    """A folder. Writes go to a temporary file first, so a killed writer never leaves a torn one."""

    parallel = 1
    foreign: tuple[type[Exception], ...] = ()

    def __init__(self, root: Path) -> None:
        self.root = root

    def locate(self, key: str) -> str:
        """Absolute path."""
        return str(self.root / key)

    def read(self, key: str) -> bytes:
        """All bytes."""
        return (self.root / key).read_bytes()

    def fill(self, key: str, start: int, view: memoryview) -> int:
        """Read from a position on."""
        with (self.root / key).open("rb", buffering=0) as file:
            file.seek(start)
            filled = 0
            while filled < len(view) and (count := file.readinto(view[filled:])):
                filled += count
        return filled

    def stream(self, key: str, start: int) -> Iterator[memoryview]:
        """The file, a MiB at a time."""
        buffer = memoryview(bytearray(_READ))
        with (self.root / key).open("rb", buffering=0) as file:
            file.seek(start)
            while count := file.readinto(buffer):
                yield buffer[:count]

    def size(self, key: str) -> int | None:
        """Bytes of a file."""
        path = self.root / key
        return path.stat().st_size if path.is_file() else None

    def walk(self, prefix: str) -> Iterator[Stored]:
        """The files below a folder, the scratch folder left out; links to folders lead nowhere."""
        folders = [self.root / prefix]
        while folders:
            try:
                entries = os.scandir(folders.pop())
            except FileNotFoundError:
                continue  # deleted while it was listed, or never there
            with entries:
                for entry in entries:
                    path = Path(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        if path != self.root / _SCRATCH:
                            folders.append(path)
                    elif entry.is_file() and (stored := self._stored(path)):
                        yield stored

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below."""
        folder = self.root / prefix
        if not folder.is_dir():
            return []
        return [entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name != _SCRATCH]

    def put(self, key: str, data: bytes) -> None:
        """Temporary file, then rename."""
        with self._scratch() as temporary:
            _write(temporary, data)
            self._move(temporary, key)

    def create(self, key: str, data: bytes) -> bool:
        """Temporary file, then a hard link: the link fails where the name is taken, on NFS too."""
        target = self._ready(key)
        with self._scratch() as temporary:
            _write(temporary, data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if _without_links(error):
                    raise ExclusiveCreateError(
                        f"{self.root} is on a file system without hard links, which create-only writes need: "
                        f"use a local disk or an S3 bucket for --store"
                    ) from error
                raise
        _sync_folder(target.parent)
        return True

    def put_file(self, key: str, path: Path) -> None:
        """A second name for a file in `staging`, a copy of any other; then rename."""
        staged = path.absolute().is_relative_to(self.root / _SCRATCH)
        target = self.root / key
        if not staged and target.is_file() and _same_bytes(path, target):
            return
        with self._scratch() as temporary:
            if not (staged and _linked(path, temporary)):
                with path.open("rb") as source, temporary.open("wb") as copy:
                    shutil.copyfileobj(source, copy, _COPIED_AT_ONCE)
                    _sync(copy)
            # What is stored never changes: not through the name in the staging folder either.
            temporary.chmod(temporary.stat().st_mode & 0o7555)
            self._move(temporary, key)

    def delete(self, key: str) -> None:
        """Unlink."""
        (self.root / key).unlink(missing_ok=True)

    @contextmanager
    def staging(self) -> Generator[Path]:
        """A folder on the store's own disk, gone when the block ends; leftovers of killed writers go with it."""
        scratch = self._scratch_folder()
        self._sweep(scratch)
        folder = Path(tempfile.mkdtemp(prefix="staging-", dir=scratch))
        held = os.open(folder, os.O_RDONLY)
        try:
            _lock(held)
            yield folder
        finally:
            os.close(held)
            shutil.rmtree(folder, ignore_errors=True)

    def open(self, key: str) -> IO[bytes]:
        """The file itself."""
        return (self.root / key).open("rb")

    def _stored(self, path: Path) -> Stored | None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return None  # deleted while it was listed
        modified = datetime.fromtimestamp(found.st_mtime, UTC)
        return Stored(key=path.relative_to(self.root).as_posix(), bytes=found.st_size, modified=modified)

    def _move(self, temporary: Path, key: str) -> None:
        target = self._ready(key)
        os.replace(temporary, target)
        _sync_folder(target.parent)

    def _ready(self, key: str) -> Path:
        """The path of a key, in a folder that is there and will be after a power cut."""
        target = self.root / key
        made: list[Path] = []
        folder = target.parent
        while not folder.is_dir():
            made.append(folder)
            folder = folder.parent
        target.parent.mkdir(parents=True, exist_ok=True)
        for new in made:
            _sync_folder(new.parent)
        return target

    def _scratch_folder(self) -> Path:
        folder = self.root / _SCRATCH
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def _scratch(self) -> Generator[Path]:
        temporary = self._scratch_folder() / uuid.uuid4().hex
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def _sweep(scratch: Path) -> None:
        for path in scratch.iterdir():
            try:
                if time.time() - path.stat().st_mtime < _ABANDONED_S:
                    continue
                if not path.is_dir():
                    path.unlink()
                    continue
                held = os.open(path, os.O_RDONLY)
                try:
                    if _lock(held):
                        shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(held)
            except FileNotFoundError:
                continue  # another writer swept it


def _same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while piece := first.read(_READ):
            if piece != second.read(_READ):
                return False
    return True


def _linked(path: Path, temporary: Path) -> bool:
    """Give a file a second name, its bytes on disk; False where the file system has no links."""
    with path.open("rb") as file:
        _sync(file)
    try:
        os.link(path, temporary)
    except OSError as error:
        if _without_links(error):
            return False
        raise
    return True


def _without_links(error: OSError) -> bool:
    return error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)


def _lock(descriptor: int) -> bool:
    """Whether this process now holds the lock; False where another does, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
