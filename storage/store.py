"""Bytes and tables in and out of any fsspec URL: atomic writes, exclusive creates, one tree of errors."""

import errno
import hashlib
import io
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.backends import Backend, LocalFolder, RemoteFolder, error_code
from storage.errors import (
    CorruptFileError,
    ExclusiveCreateError,
    StorageError,
    StoreFullError,
    StoreUnavailableError,
    UnsafePathError,
)
from storage.records import parquet_options

_LOCAL = re.compile(r"^(file|local)://")
_WRITE = "write"
_CONFLICT = "ConditionalRequestConflict"  # S3: two creates at the same moment, undecided: ask again
_S3_OPTIONS: dict[str, Any] = {
    # A cached listing would hide the versions that others publish.
    "use_listings_cache": False,
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"max_attempts": 3, "mode": "standard"},
    },
}


class Store:
    """One root that holds builds and datasets.

    Args:
        url: "./store", "/abs/store", "s3://bucket/prefix", "memory://name" or any other fsspec URL. S3 takes
            keys, region and endpoint from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …).
        fs_options: passed to fsspec's file system, for what the environment cannot say.
    """

    def __init__(self, url: str | Path, **fs_options: Any) -> None:
        text = str(url)
        if re.match(r"^[a-z0-9+]+://[^/]*@", text):
            raise ValueError("the store's URL holds credentials: set AWS_ACCESS_KEY_ID and the like in the environment")
        self._foreign: tuple[type[Exception], ...] = ()
        self._probed = False
        self._backend: Backend = self._connect(text, fs_options)
        self.url = self._backend.locate("")

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def uri(self, key: str) -> str:
        """Address of a key that other tools open: an absolute path, or a URL."""
        return self._backend.locate(_checked(key))

    def read(self, key: str) -> bytes:
        """All bytes of a key; FileNotFoundError where there is none."""
        with self._translated("read", key):
            return self._backend.read(_checked(key))

    def chunks(self, key: str) -> Iterator[bytes]:
        """The bytes of a key in pieces of at most 8 MiB."""
        with self._translated("read", key):
            yield from self._backend.chunks(_checked(key))

    def exists(self, key: str) -> bool:
        """Whether the key holds bytes (a folder does not)."""
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of a key, None where there is none."""
        with self._translated("look at", key):
            return self._backend.size(_checked(key))

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below the folder `prefix`, sorted; cheaper than `list`."""
        with self._translated("list", prefix):
            return sorted(self._backend.folders(_checked(prefix) if prefix else ""))

    def put(self, key: str, data: bytes) -> None:
        """Write or replace. Readers see the old bytes or the new ones, never a mixture."""
        with self._translated(_WRITE, key):
            self._backend.put(_checked(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """Write only where nothing is: of all callers, on all machines, exactly one gets True.

        Args:
            key: where.
            data: small, and not empty: s3fs writes empty objects unconditionally.
        """
        if not data:
            raise ValueError(f"nothing to write to {key}: an empty object cannot be created exclusively")
        with self._translated(_WRITE, key):
            for attempt in range(5):
                try:
                    return self._backend.create(_checked(key), data)
                except OSError as error:
                    if error_code(error) != _CONFLICT or attempt == 4:
                        raise
                    time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    def put_file(self, key: str, path: Path) -> None:
        """As `put`, from a file of any size, in bounded memory."""
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file to store", str(path))
        with self._translated(_WRITE, key):
            self._backend.put_file(_checked(key), path)

    def fetch(self, key: str, path: Path, advance: Callable[[int], None] | None = None) -> str:
        """Copy a key to a local file, which exists only once it is complete; its sha256.

        `advance` is called with the bytes just copied.
        """
        digest = hashlib.sha256()
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                for piece in self.chunks(key):
                    digest.update(piece)
                    file.write(piece)
                    if advance is not None:
                        advance(len(piece))
            temporary.replace(path)
        except StorageError:
            raise
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise
            raise explained(error, "write", str(path)) from error
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest()

    def delete(self, key: str) -> None:
        """Remove a key; one that is not there is no error."""
        with self._translated("delete", key):
            self._backend.delete(_checked(key))

    def open_table(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file as a table; only the named columns where given (only their bytes travel)."""
        with self._translated("read", key), self._backend.open(_checked(key)) as file:
            return pq.read_table(file, columns=list(columns) if columns is not None else None)

    def batches(self, key: str, columns: Sequence[str] | None = None, rows: int = 64) -> Iterator[pa.RecordBatch]:
        """A Parquet file in batches of at most `rows` rows, one row group in memory at a time."""
        with self._translated("read", key), self._backend.open(_checked(key)) as file:
            table = pq.ParquetFile(file, pre_buffer=True)  # one request a column chunk, neighbours joined
            for group in range(table.num_row_groups):  # all at once would buffer the whole file
                wanted = list(columns) if columns is not None else None
                yield from table.iter_batches(rows, row_groups=[group], columns=wanted)

    def put_table(self, key: str, table: pa.Table) -> str:
        """Write a table as Parquet; the sha256 of its bytes. Same table, same bytes."""
        buffer = io.BytesIO()
        pq.write_table(table.combine_chunks(), buffer, **parquet_options(table.schema))
        data = buffer.getvalue()
        self.put(key, data)
        return hashlib.sha256(data).hexdigest()

    def list(self, prefix: str = "") -> list[str]:
        """Every key below the folder `prefix`, at any depth, sorted."""
        # Below all annotations: in the class, `list` means this method from here on.
        with self._translated("list", prefix):
            return sorted(self._backend.find(_checked(prefix) if prefix else ""))

    def probe(self) -> None:
        """Check once that create-only writes really exclude each other here.

        Raises:
            ExclusiveCreateError: the backend ignores or refuses the condition.
            StoreUnavailableError: it does not answer, or may not be written.
        """
        if self._probed:
            return
        key = f".tmp/probe-{uuid.uuid4().hex}"
        first, second = self.create(key, b"first"), False
        try:
            second = self.create(key, b"second")
            kept = self.read(key)
        finally:
            self.delete(key)
        if not first or second or kept != b"first":
            raise ExclusiveCreateError(
                f"{self.url} lets a second writer replace what was created with If-None-Match: *, so "
                "versions could be lost: use AWS S3, Ceph 16 or later, or a local folder"
            )
        self._probed = True

    def _connect(self, text: str, options: dict[str, Any]) -> Backend:
        if "://" not in text or _LOCAL.match(text):
            return LocalFolder(Path(_LOCAL.sub("", text)).expanduser().absolute())
        import fsspec.core  # slow to import; a local folder does not need it

        if text.startswith("s3://"):
            from botocore.exceptions import BotoCoreError, ClientError  # s3fs lets these through as they are

            self._foreign = (BotoCoreError, ClientError)
            options = {**_S3_OPTIONS, **options}
        try:
            fs, root = fsspec.core.url_to_fs(text, **options)
        except (ValueError, ImportError) as error:
            raise StoreUnavailableError(f"{text} is no store this installation can open: {error}") from error
        return RemoteFolder(fs, root, text.rstrip("/"))

    @contextmanager
    def _translated(self, doing: str, key: str) -> Generator[None]:
        where = f"{self.url}/{key}".rstrip("/")
        try:
            yield
        except StorageError:
            raise
        except pa.ArrowInvalid as error:
            raise CorruptFileError(f"{where} is no readable Parquet file: {_first_line(error)}") from error
        except FileNotFoundError as error:
            if error_code(error) == "NoSuchBucket":
                raise StoreUnavailableError(
                    f"cannot {doing} {where}: there is no such bucket: create it, or correct --store"
                ) from error
            if doing == _WRITE:
                raise explained(error, doing, where) from error
            raise FileNotFoundError(errno.ENOENT, f"nothing under this key in {self.url}", key) from error
        except OSError as error:
            raise explained(error, doing, where) from error
        except self._foreign as error:
            raise explained(error, doing, where) from error


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder on this machine for files on their way to or from a store; gone when its block ends."""
    return tempfile.TemporaryDirectory(prefix="sonoforge-")


def _checked(key: str) -> str:
    parts = key.split("/")
    if "\\" in key or any(part in ("", ".", "..") for part in parts) or not key.isprintable():
        raise UnsafePathError(
            f"the key {key!r} could leave the store: expected names joined by single slashes, without . or .."
        )
    return key


def explained(error: Exception, doing: str, where: str) -> StorageError:
    """The storage error that says what went wrong while `doing` something to `where`, and what to do."""
    what = f"cannot {doing} {where}"
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(
            f"{what}: no space left on the device. Free some space or choose another place, then run the "
            "same command again: what is finished is kept"
        )
    what = f"{what}: {_first_line(error)}"
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return StoreUnavailableError(
            f"{what}. Check the permissions (on S3, the AWS_* variables and the bucket's policy), or choose "
            "another place"
        )
    return StoreUnavailableError(
        f"{what}. Check that the place is there and reachable (on S3, AWS_ENDPOINT_URL and the other AWS_* "
        "variables), or choose another; what is finished is kept"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
