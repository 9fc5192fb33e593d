"""A prefix of a bucket on S3, or on a server that speaks its protocol.

s3fs reads the options, profiles and environment variables; the requests themselves go through botocore, on which
s3fs is built: threads of it move large files faster, each part can carry its MD5, a listing can be streamed, and
what is repeated when is decided in one place.
"""

import io
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import botocore.exceptions
import botocore.loaders
import botocore.parsers
import urllib3.exceptions
from botocore import UNSIGNED
from botocore.config import Config
from botocore.session import Session
from fsspec import AbstractFileSystem

from storage import endpoints, uploads
from storage.errors import CorruptFileError, ExclusiveCreateError
from storage.explaining import error_code, http_status
from storage.records import Stored
from storage.retrying import FIRST_CONTACT_S, passing, persist

T = TypeVar("T")

_UPLOADS = 4  # tries until what arrives is what was sent
_READ = 2**18  # taken from a connection at a time: small enough to stay in the processor's cache until it is hashed
_SETTINGS: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"total_max_attempts": 1, "mode": "standard"},  # storage.retrying asks again, nobody else
    "max_pool_connections": 32,
    "tcp_keepalive": True,
    "request_checksum_calculation": "when_required",  # each upload carries its MD5, which every server knows
    "response_checksum_validation": "when_required",  # what is read is compared with a sha256
}
_UPLOADING = {"payload_signing_enabled": False}
"""What is signed is the MD5 of a payload: a sha256 besides would cost as much time as sending it."""

_PASSING_CODES = {
    "BadDigest",  # damaged on its way: the server refused it
    "ConditionalRequestConflict",  # two creates at the same moment, undecided
    "InternalError",
    "InvalidPart",  # the list of parts was damaged on its way
    "MalformedXML",  # the same
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "XAmzContentSHA256Mismatch",
}
_PASSING_STATUS = {408, 409, 429, 500, 502, 503, 504}
_PASSING_ERRORS = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    botocore.parsers.ResponseParserError,
    urllib3.exceptions.HTTPError,  # of a body that breaks off, where botocore reads it as a whole
)
_NO_CONDITION = {"InvalidArgument", "InvalidRequest", "NotImplemented"}


_descriptions = botocore.loaders.create_loader()
"""Of the protocol: read once, not by each store."""

_have_answered: set[str] = set()
"""Addresses of servers that have answered this process: an outage is not taken for a wrong address, whoever asks."""


class S3Bucket:
    """A prefix of a bucket."""

    parallel = 4
    foreign: tuple[type[Exception], ...] = (
        botocore.exceptions.BotoCoreError,
        botocore.exceptions.ClientError,
        urllib3.exceptions.HTTPError,
    )

    def __init__(self, fs: AbstractFileSystem, root: str, shown: str, patience_s: float) -> None:
        self._fs: Any = fs  # its settings, not its connections
        self.bucket, _, self.root = root.strip("/").partition("/")
        self.shown = shown
        self._patience_s = patience_s
        self._connecting = threading.Lock()
        self._connected: tuple[int, Any] | None = None

    def locate(self, key: str) -> str:
        """URL of a key."""
        return f"{self.shown}/{key}" if key else self.shown

    def read(self, key: str) -> bytes:
        """All bytes."""

        def get() -> bytes:
            return self._once("get_object", {"Key": self._path(key)})["Body"].read()

        return self._ask(get)

    def fill(self, key: str, start: int, view: memoryview) -> int:
        """One range request; after a fault, another for what is still missing."""
        filled = 0
        for piece in self._stream(key, start, len(view)):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def stream(self, key: str, start: int) -> Iterator[memoryview]:
        """One request for all; after a fault, another for what is still missing."""
        return self._stream(key, start, None)

    def size(self, key: str) -> int | None:
        """Bytes of an object."""
        head = self._head(key)
        return None if head is None else int(head["ContentLength"])

    def walk(self, prefix: str) -> Iterator[Stored]:
        """What is below a prefix, a thousand objects in memory at a time."""
        for page in self._pages(prefix):
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    key = entry["Key"][len(self.root) :].lstrip("/")
                    yield Stored(key=key, bytes=int(entry["Size"]), modified=entry["LastModified"])

    def folders(self, prefix: str) -> list[str]:
        """Names of the common prefixes directly below."""
        pages = self._pages(prefix, Delimiter="/")
        paths = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
        return [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]

    def put(self, key: str, data: bytes) -> None:
        """One object with its MD5; servers show it whole or not at all."""
        uploads.put(self._request, self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """One conditional PUT (`If-None-Match: *`): never multipart, where servers ignore the condition."""
        try:
            uploads.put(self._request, self._path(key), data, IfNoneMatch="*")
        except botocore.exceptions.ClientError as error:
            code, status = error_code(error), http_status(error)
            if code == "PreconditionFailed" or status == 412:
                return False
            if status == 501 or (status == 400 and code in _NO_CONDITION):
                raise ExclusiveCreateError(
                    f"{self.shown} refuses create-only writes (If-None-Match: * is answered with {status} {code}), so "
                    "versions could be lost: use AWS S3, Ceph 16 or later, or a local folder"
                ) from error
            raise
        return True

    def put_file(self, key: str, path: Path) -> None:
        """Upload, in parts above 16 MiB, each with its MD5; what arrived is compared by size and ETag.

        Raises:
            CorruptFileError: other bytes arrived, each time.
        """
        size = path.stat().st_size
        part = uploads.part_bytes(size)
        head = self._head(key)
        if head is not None and int(head["ContentLength"]) == size:
            there = [uploads.md5(piece) for piece in uploads.pieces(path, part)]
            if uploads.agrees(head, size, there):
                return
        for _ in range(_UPLOADS):
            parts = uploads.upload(self._request, self._path(key), path, part)
            head = self._head(key)
            if head is not None and uploads.agrees(head, size, parts):
                return
        raise CorruptFileError(
            f"{self.locate(key)} arrived with other bytes than {path} has, {_UPLOADS} times: something between here "
            "and the server damages them, or the file is being written to"
        )

    @contextmanager
    def staging(self) -> Generator[Path]:
        """A folder on this machine."""
        with tempfile.TemporaryDirectory(prefix="sonoforge-") as folder:
            yield Path(folder)

    def delete(self, key: str) -> None:
        """Remove an object."""
        try:
            self._request("delete_object", Key=self._path(key))
        except FileNotFoundError as error:
            if error_code(error) == "NoSuchBucket":
                raise

    @property
    def _client(self) -> Any:
        """Connections of this process: after a fork, the parent's would be shared."""
        with self._connecting:
            if self._connected is None or self._connected[0] != os.getpid():
                self._connected = os.getpid(), self._connect()
            return self._connected[1]

    def _connect(self) -> Any:
        fs = self._fs
        given = {
            "aws_access_key_id": fs.key,
            "aws_secret_access_key": fs.secret,
            "aws_session_token": fs.token,
            "endpoint_url": fs.endpoint_url,
            "use_ssl": fs.use_ssl,
            **fs.client_kwargs,
        }
        settings = {**_SETTINGS, **fs.config_kwargs}
        settings["s3"] = {**_UPLOADING, **settings.get("s3", {})}
        if fs.anon:
            settings["signature_version"] = UNSIGNED
        session = Session(profile=fs.kwargs.get("profile"))
        session.register_component("data_loader", _descriptions)
        endpoints.checked(session, given)
        endpoints.hush()
        return session.create_client("s3", config=Config(**settings), **given)

    def _request(self, method: str, *, repeat: bool = True, **given: Any) -> Any:
        """The answer to one request that is safe to repeat."""
        return self._ask(lambda: self._once(method, given)) if repeat else self._once(method, given)

    def _once(self, method: str, given: dict[str, Any]) -> Any:
        """One request, with what the options say about encryption, access and payment where it takes that."""
        client = self._client
        operation = client.meta.method_to_api_mapping[method]
        members = client.meta.service_model.operation_model(operation).input_shape.members
        extra = {**self._fs.s3_additional_kwargs, **self._fs.req_kw}
        known = {name: value for name, value in extra.items() if name in members}
        return getattr(client, method)(Bucket=self.bucket, **known, **given)

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}".strip("/") if self.root else key

    def _ask(self, call: Callable[[], T]) -> T:
        """The answer to a request that is safe to repeat."""

        def is_passing(error: Exception) -> bool:
            if isinstance(error, botocore.exceptions.ClientError):
                _have_answered.add(self._address)
            return _is_passing(error)

        try:
            answer = persist(call, is_passing, self._patience)
        except botocore.exceptions.ClientError as error:
            if error_code(error) in ("NoSuchKey", "NoSuchBucket", "404"):
                raise FileNotFoundError(str(error)) from error
            raise
        _have_answered.add(self._address)
        return answer

    @property
    def _address(self) -> str:
        return str(self._client.meta.endpoint_url)

    def _patience(self) -> float:
        return self._patience_s if self._address in _have_answered else min(FIRST_CONTACT_S, self._patience_s)

    def _stream(self, key: str, start: int, length: int | None) -> Iterator[memoryview]:
        """The bytes of a span, to the end for None; each piece lies where the next will."""
        buffer = memoryview(bytearray(min(_READ, length) if length else _READ))
        body: Any = None
        at, end, tag = start, start, ""

        def more() -> int:
            nonlocal body, end, tag
            try:
                if body is None:
                    body, size, now = self._get(key, at, None if length is None else start + length)
                    if tag not in ("", now):
                        raise CorruptFileError(f"{self.locate(key)} was replaced while it was read: run it again")
                    end, tag = at + size, now
                wanted = min(len(buffer), end - at)
                count = body.readinto(buffer[:wanted]) if wanted else 0
                if wanted and not count:
                    raise ConnectionError(f"the answer ended {end - at} bytes early")
            except BaseException:
                if body is not None:
                    body.close()
                body = None
                raise
            return count

        try:
            while count := self._ask(more):
                yield buffer[:count]
                at += count
        finally:
            if body is not None:
                body.close()

    def _get(self, key: str, start: int, end: int | None) -> tuple[Any, int, str]:
        """The body of an answer, its length, and the ETag of the object."""
        span = {} if start == 0 and end is None else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        try:
            answer = self._once("get_object", {"Key": self._path(key), **span})
        except botocore.exceptions.ClientError as error:
            if error_code(error) != "InvalidRange":  # begins after the last byte
                raise
            return io.BytesIO(), 0, ""
        return answer["Body"], int(answer["ContentLength"]), answer["ETag"]

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            return self._request("head_object", Key=self._path(key))
        except FileNotFoundError:
            return None

    def _pages(self, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        folder = self._path(prefix)
        where = {"Prefix": f"{folder}/" if folder else "", **options}
        while True:
            page = self._ask(lambda: self._page(where))
            yield page
            if not page.get("IsTruncated"):
                return
            where["ContinuationToken"] = page["NextContinuationToken"]

    def _page(self, where: dict[str, Any]) -> dict[str, Any]:
        """One page of a listing. It carries no checksum: one that contradicts itself is asked for again."""
        _ = self._client  # an address that is none is no listing's fault
        try:
            page = self._once("list_objects_v2", where)
        except ValueError as error:  # botocore's, of a size or time that is none
            raise botocore.parsers.ResponseParserError(f"a damaged listing: {error}") from error
        names = [entry["Key"] for entry in page.get("Contents", [])]
        names += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        strange = next((name for name in names if not name.startswith(where["Prefix"])), None)
        more = bool(page.get("IsTruncated"))
        if strange or page.get("KeyCount", len(names)) != len(names) or more != ("NextContinuationToken" in page):
            raise botocore.parsers.ResponseParserError(f"a damaged listing: {strange or len(names)}")
        return page


def _is_passing(error: Exception) -> bool:
    if isinstance(error, botocore.exceptions.ClientError):
        return error_code(error) in _PASSING_CODES or http_status(error) in _PASSING_STATUS
    if isinstance(error, (botocore.exceptions.SSLError, botocore.exceptions.ProxyConnectionError)):
        return False
    return isinstance(error, _PASSING_ERRORS) or passing(error)
