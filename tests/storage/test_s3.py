"""What only S3 can do wrong. The servers are real; their answers are spoilt on this side of the wire.

A proxy that spoils them on the wire itself: test_faults.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from storage.errors import CorruptFileError, ExclusiveCreateError, StoreUnavailableError
from storage.s3 import S3Bucket
from storage.store import Store
from storage.uploads import PART


@pytest.fixture
def store(s3: tuple[str, str]) -> Store:
    """An empty store on each S3 server."""
    return Store(s3[1], patience_s=2)


class Wire:
    """Every request that goes out; `spoil` may replace what comes back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.spoil: Callable[[str, Callable[[], Any]], Any] = lambda method, ask: ask()
        once = S3Bucket._once

        def noted(bucket: S3Bucket, method: str, given: dict[str, Any]) -> Any:
            self.sent.append((method, given))
            return self.spoil(method, lambda: once(bucket, method, given))

        monkeypatch.setattr(S3Bucket, "_once", noted)

    def methods(self) -> list[str]:
        return [method for method, _ in self.sent]

    def first(self, method: str, error: Exception, *, done: bool) -> None:
        """Answer the first request of a kind with an error, after or instead of doing what it asks."""
        waiting = [error]

        def spoil(now: str, ask: Callable[[], Any]) -> Any:
            if now == method and waiting:
                if done:
                    ask()
                raise waiting.pop()
            return ask()

        self.spoil = spoil


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


def _error(code: str, status: int) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "Any")


def test_every_upload_carries_its_md5(store: Store, wire: Wire, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(PART + 1))
    store.put("a", b"x")
    store.create("b", b"x")
    store.put_file("c", tmp_path / "file")
    carrying = [given for method, given in wire.sent if method in ("put_object", "upload_part")]
    assert len(carrying) == 4
    assert all("ContentMD5" in given for given in carrying)


def test_a_wrong_md5_is_refused_by_the_server(
    store: Store, s3: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.environ["AWS_ACCESS_KEY_ID"] == "test":
        pytest.skip("moto does not look at Content-MD5")
    monkeypatch.setattr("storage.uploads.md5", lambda data: b"0" * 16)
    with pytest.raises(StoreUnavailableError, match="BadDigest"):
        store.put("key", b"x")
    assert not store.exists("key")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionClosedError(endpoint_url="http://x"),
        _error("SlowDown", 503),
        _error("InternalError", 500),
        _error("ConditionalRequestConflict", 409),
        _error("BadDigest", 400),
    ],
    ids=["reset", "slow", "500", "409", "digest"],
)
@pytest.mark.parametrize("done", [False, True])
def test_a_create_that_is_not_answered_is_decided_all_the_same(
    store: Store, wire: Wire, error: Exception, done: bool
) -> None:
    wire.first("put_object", error, done=done)
    assert store.create("key", b"mine")
    assert store.read("key") == b"mine"
    assert not store.create("key", b"theirs")


def test_an_upload_whose_completion_was_not_answered_is_complete(store: Store, wire: Wire, tmp_path: Path) -> None:
    data = os.urandom(PART + 100)
    (tmp_path / "file").write_bytes(data)
    wire.first("complete_multipart_upload", ConnectionClosedError(endpoint_url="http://x"), done=True)
    store.put_file("key", tmp_path / "file")
    assert store.read("key") == data


def test_an_upload_that_fails_leaves_no_parts(store: Store, wire: Wire, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(PART + 100))
    wire.first("upload_part", _error("AccessDenied", 403), done=False)
    with pytest.raises(StoreUnavailableError, match=r"AccessDenied.*Check the permissions"):
        store.put_file("key", tmp_path / "file")
    assert wire.methods()[-1] == "abort_multipart_upload"
    assert not store.exists("key")


def test_a_permanent_refusal_is_not_repeated(store: Store, wire: Wire) -> None:
    wire.first("put_object", _error("AccessDenied", 403), done=False)
    with pytest.raises(StoreUnavailableError, match="AccessDenied"):
        store.put("key", b"x")
    assert wire.methods() == ["put_object"]


@pytest.mark.parametrize(("code", "status"), [("NotImplemented", 501), ("InvalidArgument", 400), ("501", 501)])
def test_a_server_that_refuses_the_condition_is_named_at_once(store: Store, wire: Wire, code: str, status: int) -> None:
    def refuse(method: str, ask: Callable[[], Any]) -> Any:
        if method == "put_object":
            raise _error(code, status)
        return ask()

    wire.spoil = refuse
    with pytest.raises(ExclusiveCreateError, match=rf"{store.url} refuses create-only writes.*use AWS S3, Ceph"):
        store.probe()
    assert wire.methods().count("put_object") <= 6  # one for each thread of the probe


class Breaking:
    """A body that breaks off after some bytes."""

    def __init__(self, body: Any, after: int) -> None:
        self._body = body
        self._left = after

    def readinto(self, buffer: memoryview) -> int:
        if not self._left:
            raise ConnectionResetError("reset")
        count = self._body.readinto(buffer[: self._left])
        self._left -= count
        return count

    def close(self) -> None:
        self._body.close()


def test_a_read_that_breaks_off_goes_on_where_it_was(store: Store, wire: Wire, tmp_path: Path) -> None:
    data = os.urandom(2**20)
    store.put("key", data)

    def breaking(method: str, ask: Callable[[], Any]) -> Any:
        answer = ask()
        return {**answer, "Body": Breaking(answer["Body"], 300_000)} if method == "get_object" else answer

    wire.spoil = breaking
    moved: list[int] = []
    store.fetch("key", tmp_path / "out", moved.append)
    assert (tmp_path / "out").read_bytes() == data
    assert sum(moved) == len(data)
    assert wire.methods().count("get_object") == 4
    assert b"".join(store.ranges("key", [(100_000, 800_000)])) == data[100_000:900_000]


def test_an_object_replaced_while_it_is_read_is_no_mixture(store: Store, wire: Wire, tmp_path: Path) -> None:
    store.put("key", b"a" * 1000)

    def breaking(method: str, ask: Callable[[], Any]) -> Any:
        answer = ask()
        if method == "get_object" and len(wire.sent) == 1:
            store.put("key", b"b" * 1000)
            return {**answer, "Body": Breaking(answer["Body"], 300)}
        return answer

    wire.sent.clear()
    wire.spoil = breaking
    with pytest.raises(CorruptFileError, match="was replaced while it was read"):
        store.fetch("key", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_listing_of_many_pages_is_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    once, pages = S3Bucket._once, list[str]()

    def short(bucket: S3Bucket, method: str, given: dict[str, Any]) -> Any:
        pages.append(method)
        return once(bucket, method, given | ({"MaxKeys": 2} if method == "list_objects_v2" else {}))

    for index in range(7):
        store.put(f"a/{index}/x", b"x")
    monkeypatch.setattr(S3Bucket, "_once", short)
    assert store.list() == [f"a/{index}/x" for index in range(7)]
    assert len(pages) == 4
    assert store.folders("a") == [str(index) for index in range(7)]


def test_options_about_encryption_go_with_the_requests_that_take_them(s3: tuple[str, str]) -> None:
    store = Store(s3[1], s3_additional_kwargs={"Metadata": {"owner": "clinic"}})
    store.put("key", b"x")
    assert store.create("other", b"x")
    bucket = store._backend
    assert isinstance(bucket, S3Bucket)
    for key in ("key", "other"):
        head = bucket._head(key)
        assert head is not None
        assert head["Metadata"] == {"owner": "clinic"}


_MEASURED = """
import resource, sys
from pathlib import Path
from storage.store import Store
path, store = Path(sys.argv[1]), Store(sys.argv[2])
store.put("small", b"x"), store.read("small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put_file("key", path)
sent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.fetch("key", path.with_name("back"))
with store.open("key") as file:
    file.seek(2**20)
    file.read(1000)
sum(map(len, store.ranges("key", [(at, 2**20) for at in range(0, 500 * 2**20, 5 * 2**20)])))
read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((sent - before) // 1024, (read - sent) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local", "ceph"])
def test_memory_does_not_grow_with_the_file(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = str(tmp_path / "store") if place == "local" else request.getfixturevalue("ceph_environment")
    size = 500 * 2**20
    with (tmp_path / "file").open("wb") as file:
        for _ in range(500):
            file.write(os.urandom(2**20))
    command = [sys.executable, "-c", _MEASURED, str(tmp_path / "file"), url]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    sent_mib, read_mib = map(int, done.stdout.split())
    assert sent_mib < 130, f"{sent_mib} MiB to send {size} bytes"
    assert read_mib < 60, f"{read_mib} MiB to read {size} bytes"
