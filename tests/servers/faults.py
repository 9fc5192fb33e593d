"""A proxy on loopback between a program and an S3 server, which does to requests what bad networks and servers do.

    with FaultyServer(endpoint, seed=1) as proxy:
        proxy.faults = Faults(reset_after=0.05, flip_response=0.01)
        ...  # AWS_ENDPOINT_URL=proxy.endpoint
        assert proxy.injected["reset_after"] > 0

Requests pass byte for byte, Host header included: that is what was signed. A flipped or cut body therefore reaches
the server under a signature of the right one, exactly as it would from a bad cable.
"""

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

from storage.store import Store
from tests.servers.supervisor import Server

_HEAD_LIMIT = 2**20
_REGION = "us-east-1"
_OF_ANSWERS = ("reset_midway", "truncated", "flip_response")
"""Faults of an answer's body: they do not happen to an answer without one."""


@dataclass(frozen=True)
class Faults:
    """Chances, 0 to 1, of what happens to one request; at most one of them happens to it."""

    reset_before: float = 0.0  # the connection breaks; the server never heard of it
    reset_after: float = 0.0  # the server did it; the connection breaks before a byte of the answer
    reset_upload: float = 0.0  # the connection breaks in the middle of the request's body; the server never heard
    reset_midway: float = 0.0  # the connection breaks in the middle of the answer's body
    truncated: float = 0.0  # the answer's body ends early and in good order, its Content-Length unchanged
    internal_error: float = 0.0  # 500, not done
    slow_down: float = 0.0  # 503 SlowDown, not done
    conflict: float = 0.0  # 409 ConditionalRequestConflict to a conditional PUT, not done
    late: float = 0.0  # answered after `delay`
    flip_request: float = 0.0  # one bit of the request's body arrives wrong
    flip_response: float = 0.0  # one bit of the answer's body arrives wrong
    delay: float = field(default=0.2, metadata={"chance": False})  # seconds

    @classmethod
    def of(cls, kind: str, rate: float) -> "Faults":
        """Only one kind, or all kinds together at this rate for "mixed"."""
        if kind == "mixed":
            return cls(**{name: rate / len(KINDS) for name in KINDS})
        return replace(cls(), **{kind: rate})


KINDS: tuple[str, ...] = tuple(entry.name for entry in fields(Faults) if entry.metadata.get("chance", True))
"""Names of the faults."""


@dataclass(frozen=True)
class Request:
    """One request as it came in."""

    method: str
    target: str  # path and query
    headers: list[tuple[str, str]]
    body: bytes  # as framed on the wire

    def header(self, name: str) -> str | None:
        return _header(self.headers, name)

    @property
    def conditional(self) -> bool:
        return self.method in ("PUT", "POST") and self.header("if-none-match") is not None

    def without(self, *names: str) -> "Request":
        return replace(self, headers=[pair for pair in self.headers if pair[0].lower() not in names])

    @property
    def head(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class FaultyServer:
    """The proxy, in a thread of its own, on a free port of 127.0.0.1.

    Args:
        upstream: "http://127.0.0.1:7480".
        faults: what happens; may be replaced at any time.
        seed: of the chances. With one client that asks one thing at a time the same faults hit the same requests.
        only: no request is touched whose "METHOD /bucket/key?query" this does not find.
        at_most: faults, all in all.
        conditions: "kept"; "ignored": `If-None-Match` is dropped, as by s3rver; "refused": a conditional write is
            answered 501, as by Swift.
        signer: whose keys sign requests again for "ignored", where the server checks signatures.
    """

    def __init__(
        self,
        upstream: str,
        faults: Faults | None = None,
        *,
        seed: int = 0,
        only: str = "",
        at_most: int | None = None,
        conditions: str = "kept",
        signer: Server | None = None,
    ) -> None:
        address = urlsplit(upstream)
        self.upstream = (address.hostname or "127.0.0.1", address.port or 80)
        self.faults = faults or Faults()
        self.only = only
        self.at_most = at_most
        self.conditions = conditions
        self.signer = signer
        self.injected: Counter[str] = Counter()
        self.requests = 0
        self.seen: deque[tuple[str, str]] = deque(maxlen=2000)
        """The latest requests ("PUT /bucket/key") and what was done to each ("" for nothing)."""
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="faulty server", daemon=True)
        self._port = 0

    @property
    def endpoint(self) -> str:
        """Address to use as AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self._port}"

    def calm(self) -> None:
        """No faults from now on."""
        self.faults = Faults()

    def __enter__(self) -> "FaultyServer":
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the faulty server did not start in 10 s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        started = self._loop.run_until_complete(asyncio.start_server(self._converse, "127.0.0.1", 0, limit=_HEAD_LIMIT))
        self._port = started.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            started.close()
            running = asyncio.all_tasks(self._loop)
            for task in running:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*running, return_exceptions=True))
            self._loop.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection: request after request until either side ends it."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while (request := await self._receive(reader, writer)) is not None and await self._answer(request, writer):
                pass
        with contextlib.suppress(ConnectionError, RuntimeError):
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, headers = _parsed(head)
        method, target, _ = first.split(" ", 2)
        if (_header(headers, "expect") or "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
        # `Expect` is answered here; it is not among the headers that are signed.
        headers = [pair for pair in headers if pair[0].lower() != "expect"]
        length = int(_header(headers, "content-length") or 0)
        if "chunked" in (_header(headers, "transfer-encoding") or "").lower():
            body = await _read_chunks(reader)
        else:
            body = await reader.readexactly(length)
        return Request(method, target, headers, body)

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Forward one request and its answer; whether the connection lives on."""
        fault = self._drawn(request)
        self.requests += 1
        self.seen.append((f"{request.method} {request.target}", fault))
        if fault and fault not in _OF_ANSWERS:
            self.injected[fault] += 1
        if request.conditional and self.conditions == "refused":
            return await _reply(writer, 501, "NotImplemented", "A header you provided implies functionality not here")
        if request.conditional and self.conditions == "ignored":
            request = _signed_again(request.without("if-none-match"), self.signer)
        match fault:
            case "reset_before" | "reset_upload":
                if fault == "reset_upload":
                    await self._half_sent(request)
                return _reset(writer)
            case "internal_error":
                return await _reply(writer, 500, "InternalError", "We encountered an internal error. Please try again.")
            case "slow_down":
                return await _reply(writer, 503, "SlowDown", "Please reduce your request rate.")
            case "conflict":
                return await _reply(writer, 409, "ConditionalRequestConflict", "A conflicting operation occurred.")
            case "late":
                await asyncio.sleep(self.faults.delay)
            case "flip_request":
                request = replace(request, body=self._flipped(request.body))
            case _:
                pass
        head, body = await self._asked(request)
        return await self._passed_on(fault, head, body, writer)

    async def _passed_on(self, fault: str, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if fault == "reset_after":
            return _reset(writer)
        if fault in _OF_ANSWERS and body:
            self.injected[fault] += 1
            if fault == "flip_response":
                body = self._flipped(body)
            else:
                writer.write(head + body[: self._random.randrange(len(body))])
                await writer.drain()
                return _reset(writer) if fault == "reset_midway" else False
        writer.write(head + body)
        await writer.drain()
        return b"connection: close" not in head.lower() and _framed(head)

    def _drawn(self, request: Request) -> str:
        """Which fault hits a request, "" for none."""
        chance = self._random.random()
        spent = self.at_most is not None and self.injected.total() >= self.at_most
        if spent or (self.only and not re.search(self.only, f"{request.method} {request.target}")):
            return ""
        for name in KINDS:
            chance -= getattr(self.faults, name)
            if chance < 0:
                return name if _applies(name, request) else ""
        return ""

    def _flipped(self, body: bytes) -> bytes:
        changed = bytearray(body)
        changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    async def _asked(self, request: Request) -> tuple[bytes, bytes]:
        """The server's answer, head and body. A new connection each time: none is ever found stale."""
        reader, writer = await asyncio.open_connection(*self.upstream, limit=_HEAD_LIMIT)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            while head.split(b" ", 2)[1] == b"100":
                head = await reader.readuntil(b"\r\n\r\n")
            return head, await _read_body(reader, head, request.method)
        finally:
            writer.close()

    async def _half_sent(self, request: Request) -> None:
        _, writer = await asyncio.open_connection(*self.upstream)
        writer.write(request.head + request.body[: self._random.randrange(len(request.body))])
        await writer.drain()
        _reset(writer)


def _applies(fault: str, request: Request) -> bool:
    """Whether a fault can happen to this request at all."""
    if fault == "conflict":
        return request.conditional
    if fault in ("flip_request", "reset_upload"):
        return bool(request.body)
    return fault not in _OF_ANSWERS or request.method != "HEAD"


def _parsed(head: bytes) -> tuple[str, list[tuple[str, str]]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    return first, [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]


def _header(headers: list[tuple[str, str]], name: str) -> str | None:
    return next((value for key, value in headers if key.lower() == name), None)


def _framed(head: bytes) -> bool:
    """Whether the end of the answer shows without the connection's end."""
    first, headers = _parsed(head)
    bodyless = first.split(" ")[1] in ("204", "304")
    return bodyless or bool(_header(headers, "content-length") or _header(headers, "transfer-encoding"))


async def _read_body(reader: asyncio.StreamReader, head: bytes, method: str) -> bytes:
    first, headers = _parsed(head)
    if method == "HEAD" or first.split(" ")[1] in ("204", "304"):
        return b""
    if "chunked" in (_header(headers, "transfer-encoding") or "").lower():
        return await _read_chunks(reader)
    length = _header(headers, "content-length")
    return await reader.readexactly(int(length)) if length is not None else await reader.read(-1)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body as it is on the wire, last chunk and trailers included."""
    whole = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        whole += line
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        whole += await reader.readexactly(size + 2)
    while True:
        line = await reader.readuntil(b"\r\n")
        whole += line
        if line == b"\r\n":
            return bytes(whole)


async def _reply(writer: asyncio.StreamWriter, status: int, code: str, message: str) -> bool:
    """An S3 error of the proxy's own; the connection lives on."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{escape(message)}</Message>'
        "<RequestId>faulty</RequestId></Error>"
    ).encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return True


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End a connection by RST, without a goodbye; False, for it does not live on."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def _signed_again(request: Request, signer: Server | None) -> Request:
    """The request under a signature that fits its headers as they now are."""
    if signer is None:
        return request
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    host = request.header("host") or ""
    path, _, query = request.target.partition("?")
    kept = {name: value for name, value in request.headers if name.lower() not in ("authorization", "x-amz-date")}
    fresh = AWSRequest(
        request.method, f"http://{host}{path}", headers=kept, data=request.body, params=dict(parse_qsl(query, True))
    )
    fresh.context["payload_signing_enabled"] = True
    sign: Callable[[Any], None] = S3SigV4Auth(Credentials(signer.key, signer.secret), "s3", _REGION).add_auth
    sign(fresh)
    return replace(request, headers=[(name, str(value)) for name, value in fresh.headers.items()])


def stores(server: Server, proxy: FaultyServer, patience_s: float = 20) -> tuple[Store, Store]:
    """One new store of a server's bucket twice: as it is, and behind the proxy."""
    url = f"s3://{server.bucket}/{uuid.uuid4().hex}"

    def at(endpoint: str) -> Store:
        return Store(
            url,
            patience_s=patience_s,
            endpoint_url=endpoint,
            key=server.key,
            secret=server.secret,
            client_kwargs={"region_name": _REGION},
        )

    return at(server.endpoint), at(proxy.endpoint)
