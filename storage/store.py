"""Bytes and tables in and out of any fsspec URL: atomic writes, exclusive creates, one tree of errors."""

import builtins
import errno
import hashlib
import io
import re
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage import transfers
from storage.backends import connect
from storage.errors import (
    CorruptFileError,
    ExclusiveCreateError,
    StorageError,
    StoreUnavailableError,
    UnsafePathError,
)
from storage.explaining import cause, error_code, explained, writing
from storage.records import Stored, parquet_options
from storage.retrying import PATIENCE_S

SMALL_BYTES = 64 * 2**20
"""Of a record: the manifest of a version with a hundred thousand files has half of it."""

_WRITE = "write"
_SECRET_OPTION = re.compile(r"(?i)key|secret|token|password|credential")


class Store:
    """One root that holds builds and datasets.

    Requests that meet a passing fault (a reset, a timeout, 5xx, SlowDown, a short answer) are repeated for
    `patience_s`; a permanent one (no permission, no such bucket, disk full) is raised at once. Safe to use from
    several threads, after a fork, and pickled.

    Args:
        url: "./store", "/abs/store", "s3://bucket/prefix", "memory://name" or any other fsspec URL. S3 takes
            keys, region and endpoint from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …).
        patience_s: how long one request is repeated; with the last try, which may take 30 s, the longest it hangs.
        fs_options: passed to fsspec's file system, for what the environment cannot say. Never shown.
    """

    def __init__(self, url: str | Path, *, patience_s: float = PATIENCE_S, **fs_options: Any) -> None:
        text = str(url)
        if re.search(r"://[^/]*@", text) or re.search(r"(?i)[?&][^=&]*(key|secret|token|signature|credential)", text):
            raise ValueError("the store's URL holds credentials: set AWS_ACCESS_KEY_ID and the like in the environment")
        self._settings = (patience_s, fs_options)
        self._secrets = frozenset(_secrets(fs_options))
        self._probed = False
        self._backend = connect(text, fs_options, patience_s)
        self._foreign = self._backend.foreign
        self.url = self._backend.locate("")

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.url, *self._settings)

    def uri(self, key: str) -> str:
        """Address of a key that other tools open: an absolute path, or a URL."""
        return self._backend.locate(_checked(key))

    def read(self, key: str) -> bytes:
        """All bytes of a key; FileNotFoundError where there is none."""
        with self._translated("read", key):
            return self._backend.read(_checked(key))

    def read_small(self, key: str) -> bytes:
        """As `read`, for records that are small by nature; CorruptFileError where there are more than 64 MiB."""
        data = bytearray()
        for piece in self._streamed(key, 0):
            data += piece
            if len(data) > SMALL_BYTES:
                raise CorruptFileError(
                    f"{self.url}/{key} is no record of sonoforge: it has more than {SMALL_BYTES} bytes"
                )
        return bytes(data)

    def chunks(self, key: str) -> Iterator[bytes]:
        """The bytes of a key in pieces of at most 8 MiB."""
        yield from map(bytes, self._streamed(key, 0))

    def ranges(self, key: str, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each (start, length), in the order given.

        Near ones travel in one request and several requests at once; memory holds six requests of up to 8 MiB (of
        the longest span, where that is longer).

        Raises:
            FileNotFoundError: there is no such key.
            CorruptFileError: it ends before a span does.
        """
        with self._translated("read", key):
            yield from transfers.ranges(self._backend, _checked(key), spans)

    @contextmanager
    def open(self, key: str) -> Generator[IO[bytes]]:
        """A seekable file for reading, whose reads ask for exactly their bytes; FileNotFoundError where none is."""
        with self._translated("read", key):
            size = self._backend.size(_checked(key))
            if size is None:
                raise FileNotFoundError(key)

        def fill(start: int, view: memoryview) -> int:
            with self._translated("read", key):
                return self._backend.fill(key, start, view)

        with transfers.RangeFile(fill, size) as file:
            yield file  # type: ignore[misc] - RawIOBase is IO[bytes] in all but name

    def exists(self, key: str) -> bool:
        """Whether the key holds bytes (a folder does not)."""
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of a key, None where there is none."""
        with self._translated("look at", key):
            return self._backend.size(_checked(key))

    def walk(self, prefix: str = "") -> Iterator[Stored]:
        """What lies below the folder `prefix`, at any depth, in no order, a page of the listing in memory at a time."""
        with self._translated("list", prefix):
            yield from self._backend.walk(_checked(prefix) if prefix else "")

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

        True also where these very bytes are there already: an earlier try wrote them and its answer was lost. So
        callers that compete must write different bytes.

        Args:
            key: where.
            data: small, and not empty.
        """
        if not data:
            raise ValueError(f"nothing to write to {key}: an empty object cannot be created exclusively")
        with self._translated(_WRITE, key):
            if self._backend.create(_checked(key), data):
                return True
            try:
                found = self._backend.read(key)
                while found != data and found != (again := self._backend.read(key)):
                    found = again  # one of the two was damaged on its way
            except FileNotFoundError:
                return False  # deleted since
            return found == data

    def put_file(self, key: str, path: Path) -> None:
        """As `put`, from a file of any size, in bounded memory; the path must stay as it is meanwhile.

        A file in `staging` of a local store gets a second name there instead of a copy, and becomes read-only.
        Where the same bytes are there already, nothing moves; other bytes, torn ones say, are replaced.

        Raises:
            CorruptFileError: other bytes arrived than were sent.
        """
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file to store", str(path))
        with self._translated(_WRITE, key):
            self._backend.put_file(_checked(key), path)

    @contextmanager
    def staging(self) -> Generator[Path]:
        """A folder for files on their way into this store, gone when the block ends.

        A local store's is on its own disk, so that `put_file` need not copy.

        Raises:
            StoreFullError: whoever wrote files into it found no space left.
        """
        with self._translated(_WRITE, ""):
            folder = self._backend.staging()
            path = folder.__enter__()
        try:
            yield path
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise explained(error, _WRITE, str(path)) from error
            raise
        finally:
            folder.__exit__(None, None, None)

    def fetch(
        self, key: str, path: Path, advance: Callable[[int], None] | None = None, *, size: int | None = None
    ) -> str:
        """Copy a key to a local file, which exists only once it is complete; its sha256.

        It holds less than a MiB in memory; up to four files at once are faster than one after the other.

        Args:
            key: what to copy.
            path: where to; its folder exists.
            advance: called with the bytes just moved.
            size: its bytes where they are known. Then a copy that breaks off stays beside `path` with ".part"
                added, and the next call goes on from there (and hashes what is there again).

        Raises:
            FileNotFoundError: there is no such key.
            CorruptFileError: it has not `size` bytes.
        """
        hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        part = hidden if size is None else transfers.part_of(path)
        try:
            with writing(path), part.open("a+b") as file:
                digest = transfers.copy(lambda have: self._streamed(key, have), self.uri(key), file, size, advance)
            part.replace(path)
        finally:
            hidden.unlink(missing_ok=True)
        return digest

    def delete(self, key: str) -> None:
        """Remove a key; one that is not there is no error."""
        with self._translated("delete", key):
            self._backend.delete(_checked(key))

    def delete_many(self, keys: Iterable[str]) -> None:
        """As `delete` for each key, several at once."""
        remaining = iter(keys)
        with ThreadPoolExecutor(2 * self._backend.parallel) as pool:
            while batch := [*islice(remaining, 1000)]:
                for _ in pool.map(self.delete, batch):
                    pass

    def open_table(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file as a table; only the named columns where given (only their bytes travel)."""
        with self._translated("read", key), self.open(key) as file:
            return pq.read_table(file, columns=list(columns) if columns is not None else None)

    def batches(self, key: str, columns: Sequence[str] | None = None, rows: int = 64) -> Iterator[pa.RecordBatch]:
        """A Parquet file in batches of at most `rows` rows, one row group in memory at a time."""
        with self._translated("read", key), self.open(key) as file:
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

    def list(self, prefix: str = "") -> builtins.list[str]:
        """Every key below the folder `prefix`, at any depth, sorted."""
        return sorted(found.key for found in self.walk(prefix))

    def probe(self) -> None:
        """Check once that create-only writes really exclude each other here, also those of the same moment.

        Raises:
            ExclusiveCreateError: the backend ignores or refuses the condition.
            StoreUnavailableError: it does not answer, or may not be written.
        """
        if self._probed:
            return
        key = f".tmp/probe-{uuid.uuid4().hex}"
        texts = [f"creator {index}".encode() for index in range(6)]

        def create(text: bytes) -> bool:
            return self.create(key, text)

        try:
            with ThreadPoolExecutor(len(texts)) as pool:
                won = [text for text, mine in zip(texts, pool.map(create, texts), strict=True) if mine]
            late = self.create(key, b"late")
            kept = self.read(key)
        finally:
            self.delete(key)
        # Bytes that nobody wrote were damaged on their way; that is no second writer.
        if late or len(won) != 1 or kept in {*texts, b"late"} - set(won):
            raise ExclusiveCreateError(
                f"{self.url} lets a second writer replace what was created with If-None-Match: *, so "
                "versions could be lost: use AWS S3, Ceph 16 or later, or a local folder"
            )
        self._probed = True

    def _streamed(self, key: str, start: int) -> Iterator[memoryview]:
        with self._translated("read", key):
            yield from self._backend.stream(_checked(key), start)

    @contextmanager
    def _translated(self, doing: str, key: str) -> Generator[None]:
        where = f"{self.url}/{key}".rstrip("/")
        try:
            yield
        except StorageError:
            raise
        except pa.ArrowInvalid as error:
            first = str(error).splitlines()[0]
            raise CorruptFileError(f"{where} is no readable Parquet file: {first}") from error
        except FileNotFoundError as error:
            if error_code(error) == "NoSuchBucket":
                raise StoreUnavailableError(
                    f"cannot {doing} {where}: there is no such bucket: create it, or correct --store"
                ) from cause(error, self._secrets)
            if doing == _WRITE:
                raise explained(error, doing, where, self._secrets) from cause(error, self._secrets)
            raise FileNotFoundError(errno.ENOENT, f"nothing under this key in {self.url}", key) from None
        except (OSError, *self._foreign) as error:
            raise explained(error, doing, where, self._secrets) from cause(error, self._secrets)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder on this machine for files on their way to or from a store; gone when its block ends."""
    return tempfile.TemporaryDirectory(prefix="sonoforge-")


def _reopened(url: str, patience_s: float, fs_options: dict[str, Any]) -> Store:
    return Store(url, patience_s=patience_s, **fs_options)


def _secrets(options: dict[str, Any]) -> Iterator[str]:
    """The values of options that are named like secrets, at any depth."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _secrets(value)
        elif isinstance(value, str) and _SECRET_OPTION.search(name):
            yield value


def _checked(key: str) -> str:
    parts = key.split("/")
    if "\\" in key or any(part in ("", ".", "..") for part in parts) or not key.isprintable():
        raise UnsafePathError(
            f"the key {key!r} could leave the store: expected names joined by single slashes, without . or .."
        )
    return key
