"""Publish, pull, channels, retraction, verify and collection through a server that fails at given rates.

Whatever happens, an operation either does exactly what it says or raises one StorageError; what is in the store and
on disk afterwards is looked at without the proxy.

By hand, for hours, against a server of one's own (AWS_ENDPOINT_URL, keys and a bucket in the environment):

    python -m tests.storage.test_faults --bucket NAME --rounds 20
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from storage import channels, garbage, leases, retractions
from storage.errors import RetractedError, StorageError, StoreUnavailableError, VersionNotFoundError
from storage.pulling import pull
from storage.records import Manifest
from storage.store import Store
from storage.verifying import verify
from storage.versions import list_versions, open_manifest, publish
from tests.servers.faults import KINDS, Faults, FaultyServer, stores
from tests.servers.supervisor import Server
from tests.storage.published import fill

T = TypeVar("T")

BOUND_S = 120.0
"""Longer than this no operation on these small versions may take, however bad the server."""

RATES = (0.01, 0.05, 0.2)


@dataclass
class Tally:
    """How operations ended."""

    finished: Counter[str] = field(default_factory=Counter[str])
    failed: Counter[str] = field(default_factory=Counter[str])
    messages: Counter[str] = field(default_factory=Counter[str])
    injected: Counter[str] = field(default_factory=Counter[str])
    requests: int = 0
    slowest_s: float = 0.0

    def add(self, other: "Tally") -> None:
        for name in ("finished", "failed", "messages", "injected"):
            getattr(self, name).update(getattr(other, name))
        self.requests += other.requests
        self.slowest_s = max(self.slowest_s, other.slowest_s)

    def line(self, kind: str, rate: float) -> str:
        """One row of the table."""
        detail = ", ".join(f"{name} {count}" for name, count in sorted(self.failed.items())) or "none"
        return (
            f"{kind:15} {rate:5.0%} {self.requests:6} requests {self.injected.total():5} faults  "
            f"{self.finished.total():4} finished {self.failed.total():3} failed ({detail}), "
            f"slowest {self.slowest_s:.1f} s"
        )


class Trial:
    """One dataset's life behind a faulty server.

    Args:
        direct: the store as it is.
        through: the same one behind `proxy`.
        proxy: calm as yet.
        work: a folder of its own on this machine.
    """

    def __init__(self, direct: Store, through: Store, proxy: FaultyServer, work: Path) -> None:
        self.direct = direct
        self.through = through
        self.proxy = proxy
        self.work = work
        self.tally = Tally()

    def run(self, faults: Faults) -> Tally:
        """Everything once, under these faults."""
        injected, requests = self.proxy.injected.copy(), self.proxy.requests
        self.proxy.faults = faults
        try:
            self._publishing()
            self._pulling()
            self._channels()
            self._collecting()
            self._verifying()
            self._retracting()
        finally:
            self.proxy.calm()
        self.tally.injected = self.proxy.injected - injected
        self.tally.requests = self.proxy.requests - requests
        return self.tally

    def attempt(self, name: str, action: Callable[[], T]) -> T | None:
        """What the action returns; None where it raised its one StorageError. Anything else is a failed test."""
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(action)
            try:
                result = running.result(BOUND_S)
            except TimeoutError:
                if not running.done():
                    os._exit(_hung(name, self.proxy))
                raise
            except StorageError as error:
                if len(str(error)) < 20 or "\n" in str(error):
                    pytest.fail(f"{name}: {error!r} is not one clear line")
                self.tally.failed[name] += 1
                self.tally.messages[f"{name}: {type(error).__name__}: {error}"[:400]] += 1
                return None
            finally:
                self.tally.slowest_s = max(self.tally.slowest_s, time.monotonic() - began)
        self.tally.finished[name] += 1
        return result

    def _publishing(self) -> None:
        for number in (1, 2, 3):
            folder = self.work / f"folder{number}"
            about = fill(folder, 12, seed=number % 3)
            (folder / "README.md").write_text("# shared by all\n")
            made = self.attempt(
                "publish", lambda folder=folder, about=about: publish(self.through, "demo", folder, about)
            )
            present = self._present()
            assert [manifest.version for manifest in present] == list(range(1, len(present) + 1))
            assert len(present) in ((number,) if made else (number - 1, number))
            if present:
                assert verify(self.direct, present[-1], deep=True) == []
            if made is None:  # what a user does: run it again
                again, created = publish(self.direct, "demo", folder, about)
                assert (again.version, created) == (number, len(present) < number)
            else:
                assert made == (present[-1], True)
            again, created = publish(self.direct, "demo", folder, about)
            assert (again.version, created) == (number, False), "one content, two numbers"
        same = self.attempt("publish", lambda: publish(self.through, "demo", folder, about))
        assert same is None or (same[0].version, same[1]) == (3, False)
        assert len(self._present()) == 3

    def _present(self) -> list[Manifest]:
        """All versions; none where the first publication gave up."""
        try:
            return list(list_versions(self.direct, "demo"))
        except VersionNotFoundError:
            return []

    def _pulling(self) -> None:
        manifest = open_manifest(self.direct, "demo@2")
        asked: list[tuple[str, dict[str, Any]]] = [
            ("pull", {}),
            ("pull where", {"where": "label = 'malignant'"}),
            ("pull coco", {"format": "coco", "split": "train"}),
        ]
        for name, options in asked:
            expected = self.work / f"expected {name}"
            pull(self.direct, manifest, expected, **options)
            out = self.work / name
            done = self.attempt(
                name,
                lambda out=out, options=options: pull(
                    self.through, open_manifest(self.through, "demo@2"), out, **options
                ),
            )
            assert out.exists() == (done is not None), f"{name} left a folder that it did not finish"
            if done is None:  # goes on where it stopped, and ends right
                pull(self.direct, manifest, out, **options)
            assert _contents(out) == _contents(expected), f"{name} brought other bytes"
        arrived = _contents(self.work / "pull")
        for file in manifest.files:
            if file.path in arrived:
                assert arrived[file.path] == file.sha256
        assert sum(file.path in arrived for file in manifest.files) >= 3

    def _channels(self) -> None:
        moves: list[str] = []
        for version in (1, 2, 1):
            before = list(channels.history(self.direct, "demo", "production"))
            assert [entry.id for entry in before] == moves
            entry = self.attempt(
                "channel", lambda version=version: channels.move(self.through, "demo", "production", version)
            )
            after = list(channels.history(self.direct, "demo", "production"))
            assert after[: len(before)] == before
            assert [found.number for found in after] == list(range(1, len(after) + 1))
            assert after[len(before) :] == [entry] if entry else len(after) - len(before) <= 1
            moves = [found.id for found in after]
            if after:
                assert channels.resolve(self.direct, "demo", "production") == after[-1].version

    def _collecting(self) -> None:
        before = {stored.key for stored in self.direct.walk("demo/objects")}
        orphan = f"demo/objects/{hashlib.sha256(os.urandom(8)).hexdigest()}.bin"
        self.direct.put(orphan, b"nobody's")
        time.sleep(1.1)  # servers date to the second
        done = self.attempt(
            "gc", lambda: garbage.collect(self.through, dataset="demo", older_than=timedelta(0), delete=True)
        )
        after = {stored.key for stored in self.direct.walk("demo/objects")}
        assert before <= after, f"gc deleted {sorted(before - after)}, which versions need"
        if done is not None:
            assert orphan not in after, "gc left an orphan and did not say so"
        self.direct.delete(orphan)

    def _verifying(self) -> None:
        manifest = open_manifest(self.direct, "demo@1")
        found = self.attempt("verify", lambda: verify(self.through, manifest, deep=True))
        if found:
            self.tally.messages[f"verify, false alarm: {found[0]}"[:400]] += 1
            self.tally.finished["verify"] -= 1
            self.tally.failed["verify (false alarm)"] += 1
        damaged = manifest.model_copy(update={"kept": manifest.kept + 1, "planned": manifest.planned + 1})
        found = self.attempt("verify damaged", lambda: verify(self.through, damaged, deep=True))
        assert found is None or found, "a damaged version was called whole"

    def _retracting(self) -> None:
        manifest = open_manifest(self.direct, "demo@3")
        stone = self.attempt("retract", lambda: retractions.retract(self.through, manifest, "speckle is wrong"))
        found = retractions.find(self.direct, "demo", 3)
        assert stone is None or stone == found
        if found is None:
            found = retractions.retract(self.direct, manifest, "speckle is wrong")
        assert found.reason == "speckle is wrong"
        # A pull behind faults may fail in two ways; what it may not do is succeed.
        with pytest.raises((RetractedError, StorageError)):
            pull(self.through, manifest, self.work / "retracted")
        assert not (self.work / "retracted").exists()
        assert open_manifest(self.direct, "demo").version == 2


def _hung(name: str, proxy: FaultyServer) -> int:
    print(f"{name} hangs for {BOUND_S} s; the last requests: {list(proxy.seen)[-5:]}", file=sys.stderr, flush=True)
    return 70


def _contents(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def trial(server: Server, faults: Faults, seed: int, work: Path) -> Tally:
    """One trial on an empty prefix."""
    work.mkdir(parents=True)
    with FaultyServer(server.endpoint, seed=seed) as proxy:
        direct, through = stores(server, proxy)
        return Trial(direct, through, proxy, work).run(faults)


def soak(server: Server, rounds: int, kinds: tuple[str, ...] = (*KINDS, "mixed")) -> None:
    """Every kind at every rate, `rounds` times; prints the table. AssertionError at the first wrong byte."""
    everything = Tally()
    for kind in kinds:
        for rate in RATES:
            tally = Tally()
            for seed in range(rounds):
                work = Path(tempfile.mkdtemp(prefix="sonoforge-faults-"))
                try:
                    tally.add(trial(server, Faults.of(kind, rate), seed, work / "trial"))
                except AssertionError as error:
                    raise AssertionError(f"{kind} at {rate:.0%}, seed {seed}: {error}") from error
                finally:
                    shutil.rmtree(work)
            print(tally.line(kind, rate), flush=True)
            everything.add(tally)
    print(everything.line("all", 0.0))
    for message, count in everything.messages.most_common(40):
        print(f"{count:4} {message}")


@pytest.fixture(params=["moto", "ceph"])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(f"{request.param}_server")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rate"),
    [("reset_after", 0.2), ("truncated", 0.2), ("flip_response", 0.2), *(("mixed", rate) for rate in RATES)],
)
def test_behind_a_faulty_server_all_is_right_or_one_error(
    kind: str, rate: float, ceph_server: Server, tmp_path: Path
) -> None:
    tally = trial(ceph_server, Faults.of(kind, rate), 1, tmp_path / "trial")
    print(tally.line(kind, rate))
    assert tally.injected.total() > 0


def test_behind_a_faulty_quick_server_all_is_right_or_one_error(moto_server: Server, tmp_path: Path) -> None:
    # moto takes a damaged upload for good: it compares no digests, as every real server does.
    tally = trial(moto_server, replace(Faults.of("mixed", 0.2), flip_request=0.0), 1, tmp_path / "trial")
    print(tally.line("mixed", 0.2))
    assert tally.injected.total() > 0


LOST = [Faults(reset_after=1.0), Faults(internal_error=1.0), Faults(conflict=1.0)]


@pytest.mark.parametrize("faults", LOST, ids=["answer lost", "500", "409"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_version_whose_manifest_was_sent_several_times_exists_once(
    faults: Faults, times: int, server: Server, tmp_path: Path
) -> None:
    about = fill(tmp_path / "folder", 6)
    with FaultyServer(server.endpoint, faults, only=r"PUT .*/manifest\.json", at_most=times) as proxy:
        direct, through = stores(server, proxy)
        manifest, created = publish(through, "demo", tmp_path / "folder", about)
        assert proxy.injected.total() == times
    assert (manifest.version, created) == (1, True)
    assert list(list_versions(direct)) == [manifest]
    assert verify(direct, manifest, deep=True) == []


@pytest.mark.parametrize("faults", LOST, ids=["answer lost", "500", "409"])
def test_a_channel_move_or_retraction_that_was_sent_twice_happened_once(
    faults: Faults, server: Server, tmp_path: Path
) -> None:
    about = fill(tmp_path / "folder", 6)
    with FaultyServer(server.endpoint, only=r"PUT .*/(channels/|retracted)") as proxy:
        direct, through = stores(server, proxy)
        manifest, _ = publish(direct, "demo", tmp_path / "folder", about)
        through.probe()
        proxy.faults, proxy.at_most = faults, 1
        entry = channels.move(through, "demo", "production", 1)
        assert channels.history(direct, "demo", "production") == [entry]
        proxy.at_most = 2
        stone = retractions.retract(through, manifest, "wrong")
        assert retractions.find(direct, "demo", 1) == stone
        assert proxy.injected.total() == 2


def test_a_lost_answer_and_then_a_damaged_one_do_not_double_a_move(moto_server: Server, tmp_path: Path) -> None:
    publish_to = fill(tmp_path / "folder", 3)
    lost, damaged = r"PUT .*/channels/", r"GET .*/channels/production/\d"
    with (
        FaultyServer(moto_server.endpoint, Faults(reset_after=1.0), only=lost, at_most=1) as inner,
        FaultyServer(inner.endpoint, Faults(flip_response=1.0), only=damaged, at_most=1) as outer,
    ):
        direct, through = stores(moto_server, outer)
        publish(direct, "demo", tmp_path / "folder", publish_to)
        entry = channels.move(through, "demo", "production", 1)
        assert (inner.injected.total(), outer.injected.total()) == (1, 1)
    assert channels.history(direct, "demo", "production") == [entry]


def test_a_server_that_never_answers_is_one_error_after_the_time_one_gives_it(moto_server: Server) -> None:
    with FaultyServer(moto_server.endpoint, Faults(late=1.0, delay=3600)) as proxy:
        options = {"key": "test", "secret": "test", "config_kwargs": {"read_timeout": 1}}
        store = Store("s3://sonoforge-tests/x", patience_s=1, endpoint_url=proxy.endpoint, **options)
        for operation in (store.list, lambda: store.create("key", b"x")):
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="Read timeout"):
                operation()
            assert time.monotonic() - began < 10


def test_a_collection_that_is_told_nonsense_takes_nothing_that_is_named_or_held(
    moto_server: Server, tmp_path: Path
) -> None:
    about = fill(tmp_path / "folder", 3)
    with FaultyServer(moto_server.endpoint, seed=4) as proxy:
        direct, through = stores(moto_server, proxy)
        publish(direct, "demo", tmp_path / "folder", about)
        held = [f"demo/objects/{hashlib.sha256(bytes([index])).hexdigest()}.bin" for index in range(3)]
        with leases.hold(direct, "somebody", held):
            for key in held:
                direct.put(key, b"on its way")
            before = direct.list("demo/objects")
            for _ in range(12):
                proxy.faults = Faults(flip_response=0.4)
                with contextlib.suppress(StorageError):
                    garbage.collect(through, older_than=timedelta(0), delete=True)
                proxy.calm()
                assert direct.list("demo/objects") == before
        assert proxy.injected.total() > 20
        direct.delete_many(direct.list("collecting"))
        garbage.collect(direct, older_than=timedelta(0), delete=True)
        assert len(direct.list("demo/objects")) == len(before) - len(held)  # what was spared was worth sparing


def test_a_manifest_that_is_damaged_on_its_way_is_sent_again(ceph_server: Server, tmp_path: Path) -> None:
    about = fill(tmp_path / "folder", 6)
    only = r"PUT .*/manifest\.json"
    with FaultyServer(ceph_server.endpoint, Faults(flip_request=1.0), only=only, at_most=2) as proxy:
        direct, through = stores(ceph_server, proxy)
        manifest, created = publish(through, "demo", tmp_path / "folder", about)
        assert (manifest.version, created, proxy.injected.total()) == (1, True, 2)
    assert verify(direct, manifest, deep=True) == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("late", "conflict")])
def test_a_server_that_fails_for_good_is_one_clear_error_in_bounded_time(
    kind: str, ceph_server: Server, tmp_path: Path
) -> None:
    about = fill(tmp_path / "folder", 6)
    with FaultyServer(ceph_server.endpoint) as proxy:
        direct, through = stores(ceph_server, proxy, patience_s=2)
        manifest, _ = publish(direct, "demo", tmp_path / "folder", about)
        through.probe()
        proxy.faults = Faults.of(kind, 1.0)
        began = time.monotonic()
        upload = lambda: publish(through, "other", tmp_path / "folder", about)  # noqa: E731
        download = lambda: pull(through, manifest, tmp_path / "out")  # noqa: E731
        with pytest.raises(StorageError) as caught:
            (upload if kind in ("flip_request", "reset_upload") else download)()
        assert time.monotonic() - began < 30
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        assert [found.version for found in list_versions(direct)] == [1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Operations behind a faulty server, many times.")
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default=",".join((*KINDS, "mixed")))
    asked = parser.parse_args()
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    endpoint, key, secret = (os.environ[name] for name in names)
    server = Server(endpoint, asked.bucket, key, secret)
    soak(server, asked.rounds, tuple(asked.kinds.split(",")))


if __name__ == "__main__":
    main()
