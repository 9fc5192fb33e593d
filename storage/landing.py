"""Where a pull lands: a folder that is complete as soon as it is there, and that says itself what it holds.

- `version.json`: the manifest of the version and what was selected of it, sealed.
- `SHA256SUMS`: every other file, as `sha256sum -c SHA256SUMS` reads it.

Until all is there the files are in `.<name>.<digest>.partial` beside it; `.<name>.lock` keeps a second pull out.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

from storage import keys
from storage.errors import BusyError, CorruptFileError, UnsafePathError
from storage.records import Manifest, Record
from storage.sealed import seal, unseal
from storage.selecting import Selection

VERSION = "version.json"
SUMS = "SHA256SUMS"
ABOUT = "about"
RESERVED = (VERSION, SUMS, ABOUT)
"""Names in a pulled folder that no published file may take."""

S = TypeVar("S")
T = TypeVar("T")


class Landed(Record):
    """What a pulled folder holds."""

    format: Literal["sonoforge-pulled-1"] = "sonoforge-pulled-1"
    manifest: Manifest
    selection: Selection
    rows: int
    sums_sha256: str  # of SHA256SUMS, which lists the files


@contextmanager
def claimed(out: Path) -> Generator[None]:
    """Keep other pulls from the same place while the block runs; the claim of a killed process is void.

    Raises:
        BusyError: somebody else pulls to it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.parent / f".{out.name}.lock"
    while (descriptor := _locked(lock, out)) is None:
        pass
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is ours: who waits for it finds a lock on nothing, and asks again
        os.close(descriptor)


def held(out: Path) -> Landed | None:
    """What a folder holds that was pulled before; None where there is none, or an empty one.

    Raises:
        ValueError: something else is there.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ValueError(f"{out} exists and is not a folder: name one that is not there yet")
    first = next(out.iterdir(), None) if out.is_dir() else None
    if first is None:
        return None
    try:
        return unseal((out / VERSION).read_bytes(), Landed, str(out / VERSION))
    except FileNotFoundError:
        raise ValueError(
            f"{out} is not an empty folder, and nothing pulled by sonoforge (it holds {first.name}, no {VERSION}): "
            "name a folder that is not there yet"
        ) from None


def sums(folder: Path) -> Iterator[tuple[str, str]]:
    """Path and sha256 of every file that a pulled folder lists."""
    with (folder / SUMS).open(encoding="utf-8") as file:
        for line in file:
            sha256, _, path = line.rstrip("\n").partition("  ")
            if not re.fullmatch(r"[0-9a-f]{64}", sha256):
                raise CorruptFileError(f"{folder / SUMS} is damaged: pull again")
            yield keys.safe_path(path), sha256


def intact(folder: Path, landed: Landed) -> bool:
    """Whether every file that was pulled is there, byte for byte. Others may be there too."""
    if sha256_of(folder / SUMS) != landed.sums_sha256:
        return False
    checked = in_parallel(lambda line: sha256_of(folder / line[0]) == line[1], sums(folder), 4)
    return all(checked)


def sha256_of(path: Path) -> str | None:
    """Digest of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


class Partial:
    """The hidden folder in which a pull is put together: `folder` becomes `out`, `work` does not."""

    def __init__(self, out: Path, manifest: Manifest, selection: Selection) -> None:
        about = [manifest.dataset, manifest.version, manifest.digest, selection]
        name = hashlib.sha256(keys.canonical_json(about)).hexdigest()[:12]
        self._out, self._manifest, self._selection = out, manifest, selection
        self._root = out.parent / f".{out.name}.{name}.partial"
        self.folder = self._root / "folder"
        self.work = self._root / "work"
        _without_links(self._root)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(exist_ok=True)

    def landed(self) -> Landed | None:
        """What it holds, where nothing is left to do but to `finish`."""
        try:
            landed = unseal((self.folder / VERSION).read_bytes(), Landed, str(self.folder / VERSION))
            return landed if intact(self.folder, landed) else None
        except (FileNotFoundError, CorruptFileError, UnsafePathError):
            return None

    def seal(self, rows: int, files: Iterable[tuple[str, str]]) -> Landed:
        """Say what the folder holds: `files` are path and sha256 of all that is in it."""
        whole = hashlib.sha256()
        with (self.folder / SUMS).open("wb") as file:
            for path, sha256 in files:
                line = f"{sha256}  {path}\n".encode()
                whole.update(line)
                file.write(line)
        landed = Landed(manifest=self._manifest, selection=self._selection, rows=rows, sums_sha256=whole.hexdigest())
        (self.folder / VERSION).write_bytes(seal(landed))
        return landed

    def finish(self, present: Landed | None) -> None:
        """Make the folder `out` or, where that is there already, mend it file by file."""
        if present is None:
            try:
                os.rename(self.folder, self._out)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise ValueError(f"{self._out} was made by somebody else during the pull: look at it") from error
                raise
        else:
            self._mend()
        discard(self._out)

    def _mend(self) -> None:
        try:
            gone = [path for path, _ in sums(self._out) if not (self.folder / path).exists()]
        except (FileNotFoundError, CorruptFileError, UnsafePathError):
            gone = []
        for path, sha256 in sums(self.folder):
            if sha256_of(self._out / path) != sha256:
                _no_link_above(self._out, path)
                _replace(self.folder / path, self._out / path)
        for name in (SUMS, VERSION):
            _replace(self.folder / name, self._out / name)
        for path in gone:
            _no_link_above(self._out, path)
            (self._out / path).unlink(missing_ok=True)


def discard(out: Path) -> None:
    """Remove what pulls to this place left behind that were never finished."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{12}}\.partial")
    for path in out.parent.iterdir():
        if ours.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def in_parallel(
    function: Callable[[S], T], items: Iterable[S], workers: int, stop: Callable[[], None] = lambda: None
) -> Iterator[T]:
    """Results as they come, of a few calls at a time; `items` are taken when there is room for them.

    The first failure ends it: calls that have not begun are dropped, those that run are told to `stop` and waited for.
    """
    with ThreadPoolExecutor(workers) as pool:
        running: set[Future[T]] = set()
        try:
            for item in items:
                running.add(pool.submit(function, item))
                if len(running) >= 2 * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:
            stop()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _locked(lock: Path, out: Path) -> int | None:
    """A descriptor that holds the lock; None where the lock's name was removed before we had it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(lock), os.fstat(descriptor)):
            return descriptor
    except FileNotFoundError:
        pass
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        raise BusyError(f"another pull to {out} is running: wait for it, or name another folder") from error
    os.close(descriptor)
    return None


def _without_links(folder: Path) -> None:
    """Remove what somebody else prepared: pulls make no links, and would write through these."""
    if folder.is_symlink():
        folder.unlink()
    elif any((Path(where) / name).is_symlink() for where, *names in os.walk(folder) for name in chain(*names)):
        shutil.rmtree(folder)


def _no_link_above(folder: Path, path: str) -> None:
    """ValueError where a folder on the way to a pulled file is a link: it may lead anywhere."""
    for part in (folder / path).parents:
        if part == folder:
            return
        if part.is_symlink():
            raise ValueError(f"{part} is a link where a pulled folder belongs: move it away and pull again")


def _replace(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not target.is_symlink():
        raise ValueError(f"{target} is a folder where a pulled file belongs: move it away and pull again")
    os.replace(source, target)
