"""Random histories of a dataset against a model of a few dictionaries.

Publish, pull, move channels, retract, collect, verify, and die in the middle of any of it: after every step the
store must say what the model says.
"""

import contextlib
import hashlib
import tempfile
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage import channels, garbage, keys, leases, retractions
from storage.errors import RetractedError, VersionNotFoundError
from storage.pulling import pull
from storage.records import Manifest
from storage.store import Store
from storage.verifying import verify
from storage.versions import About, list_versions, open_manifest, publish
from tests.storage.published import fill

NAMES = ("production", "staging")
LATER: dict[str, Any] = {"now": datetime.now(UTC) + timedelta(days=2)}


class Died(BaseException):
    """The process ended here, without cleaning up."""


class Mortal(Store):
    """A store whose user dies at its n-th operation: nothing that it does afterwards reaches the store."""

    _counted = frozenset(name for name in vars(Store) if not name.startswith("_") and name != "uri")

    def __init__(self, url: str, dies_at: int, after: bool) -> None:
        self._left = 10**9
        self._after = after
        super().__init__(url)
        self._left = dies_at

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in Mortal._counted:
            return found

        def counted(*positional: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left < 0 or (self._left == 0 and not self._after):
                raise Died
            result = found(*positional, **named)
            if self._left == 0:
                raise Died
            return result

        return counted


class Contents:
    """Folders to publish, made once: some files are in several of them."""

    def __init__(self, root: Path) -> None:
        self.folders = [root / f"{index}" for index in range(4)]
        self.abouts: list[About] = []
        for index, folder in enumerate(self.folders):
            self.abouts.append(fill(folder, 6, seed=index // 2))  # two and two share their rows
            (folder / "README.md").write_text(f"# content {index}\n")


_made: list[Contents] = []


def contents() -> Contents:
    if not _made:
        _made.append(Contents(Path(tempfile.mkdtemp(prefix="sonoforge-machine-"))))
    return _made[0]


class Versions(RuleBasedStateMachine):
    """The real thing beside its model."""

    new_url: Callable[[], str]

    def __init__(self) -> None:
        super().__init__()
        self.contents = contents()
        self.work = Path(tempfile.mkdtemp(prefix="sonoforge-machine-"))
        self.url = type(self).new_url()
        self.store = Store(self.url)
        self.published: dict[int, int] = {}  # version: content
        self.retracted: dict[int, str] = {}
        self.moves: dict[str, list[int]] = {name: [] for name in NAMES}

    # What the model knows.

    @property
    def live(self) -> list[int]:
        return [number for number in self.published if number not in self.retracted]

    def expected(self, content: int) -> int | None:
        """Which version these files already are, None where they are none."""
        return next((number for number, which in self.published.items() if which == content), None)

    def manifest(self, number: int) -> Manifest:
        return open_manifest(self.store, f"demo@{number}")

    def objects(self) -> set[str]:
        return set(self.store.list("demo/objects"))

    def orphans(self) -> set[str]:
        return self.objects() - {file.key for number in self.published for file in self.manifest(number).files}

    # Publishing.

    @rule(content=st.integers(0, 3))
    def publishes(self, content: int) -> None:
        self._publish(self.store, content)

    def _publish(self, store: Store, content: int) -> None:
        known = self.expected(content)
        folder, about = self.contents.folders[content], self.contents.abouts[content]
        if known in self.retracted:
            with pytest.raises(RetractedError, match=self.retracted[known]):
                publish(store, "demo", folder, about)
            return
        manifest, created = publish(store, "demo", folder, about)
        if known is None:
            assert (manifest.version, created) == (len(self.published) + 1, True)
            self.published[manifest.version] = content
        else:
            assert (manifest.version, created) == (known, False)

    @rule(content=st.integers(0, 3), at=st.integers(1, 40), after=st.booleans())
    def publisher_dies(self, content: int, at: int, after: bool) -> None:
        number = len(self.published) + 1
        known = self.expected(content)
        try:
            self._publish(Mortal(self.url, at, after), content)
        except Died:
            if known is None and self.store.exists(keys.manifest_key("demo", number)):
                self.published[number] = content  # it died after the act

    # Pulling.

    @precondition(lambda self: self.published)
    @rule(data=st.data(), where=st.booleans())
    def pulls(self, data: st.DataObject, where: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.published)))
        out = self.work / uuid.uuid4().hex
        options = {"where": "label = 'malignant'"} if where else {}
        if self._refused(number, out):
            return
        pull(self.store, self.manifest(number), out, **options)
        if not where:
            self._same_as_published(number, out)
        again = pull(self.store, self.manifest(number), out, **options)
        assert again.up_to_date
        assert again.bytes_moved == 0

    @precondition(lambda self: self.live)
    @rule(data=st.data(), at=st.integers(1, 30), after=st.booleans())
    def puller_dies(self, data: st.DataObject, at: int, after: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.live)))
        out = self.work / uuid.uuid4().hex
        mortal = Mortal(self.url, at, after)
        try:
            pull(mortal, self.manifest(number), out)
        except Died:
            assert not out.exists()
            pull(self.store, self.manifest(number), out)
        self._same_as_published(number, out)
        assert [path for path in self.work.iterdir() if path.name.endswith(".partial")] == []

    def _refused(self, number: int, out: Path) -> bool:
        if number not in self.retracted:
            return False
        with pytest.raises(RetractedError, match=self.retracted[number]):
            pull(self.store, self.manifest(number), out)
        assert not out.exists()
        return True

    def _same_as_published(self, number: int, out: Path) -> None:
        folder = self.contents.folders[self.published[number]]
        found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        names = found & {file.path for file in self.manifest(number).files}
        assert "metadata.parquet" in names
        assert any(name.startswith("data/") for name in names)
        for name in names:
            assert (out / name).read_bytes() == (folder / name).read_bytes(), name

    # Channels.

    @rule(name=st.sampled_from(NAMES), number=st.integers(1, 5))
    def moves_channel(self, name: str, number: int) -> None:
        if number not in self.published:
            with pytest.raises(VersionNotFoundError):
                channels.move(self.store, "demo", name, number)
        elif number in self.retracted:
            with pytest.raises(RetractedError, match=self.retracted[number]):
                channels.move(self.store, "demo", name, number)
        else:
            entry = channels.move(self.store, "demo", name, number)
            self.moves[name].append(number)
            assert (entry.version, entry.number) == (number, len(self.moves[name]))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), name=st.sampled_from(NAMES), at=st.integers(1, 8), after=st.booleans())
    def mover_dies(self, data: st.DataObject, name: str, at: int, after: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.live)))
        try:
            channels.move(Mortal(self.url, at, after), "demo", name, number)
        except Died:
            if not self.store.exists(keys.channel_key("demo", name, len(self.moves[name]) + 1)):
                return
        self.moves[name].append(number)

    # Retracting.

    @precondition(lambda self: self.live)
    @rule(data=st.data(), reason=st.sampled_from(["wrong speckle", "a patient withdrew"]))
    def retracts(self, data: st.DataObject, reason: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.live)))
        stone = retractions.retract(self.store, self.manifest(number), reason)
        assert stone.reason == reason
        self.retracted[number] = reason

    @precondition(lambda self: self.live)
    @rule(data=st.data(), at=st.integers(1, 5), after=st.booleans())
    def retracter_dies(self, data: st.DataObject, at: int, after: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.live)))
        try:
            retractions.retract(Mortal(self.url, at, after), self.manifest(number), "in haste")
        except Died:
            if retractions.find(self.store, "demo", number) is None:
                return
        self.retracted[number] = "in haste"

    # Collecting: two hours later, when the leases of the dead are void.

    @rule(dry=st.booleans())
    def collects(self, dry: bool) -> None:
        before, orphans = self.objects(), self.orphans()
        seen: set[str] = set()
        found = garbage.collect(self.store, delete=not dry, each=lambda item: seen.add(item.key), **LATER)
        assert orphans == {key for key in seen if key.startswith("demo/")}
        assert found.objects == len(seen)
        assert self.objects() == (before if dry else before - orphans)

    @rule(at=st.integers(1, 12), after=st.booleans())
    def collector_dies(self, at: int, after: bool) -> None:
        before, orphans = self.objects(), self.orphans()
        with contextlib.suppress(Died):
            garbage.collect(Mortal(self.url, at, after), delete=True, **LATER)
        assert before - self.objects() <= orphans
        for key in self.store.list(keys.COLLECTING):  # publishers wait a minute for it, then pass it over
            self.store.delete(key)

    @rule()
    def collects_beside_somebody(self) -> None:
        """What somebody holds stays, though no manifest names it; once he is gone, it is an orphan."""
        key = keys.object_key("demo", hashlib.sha256(uuid.uuid4().bytes).hexdigest(), ".bin")
        with leases.hold(self.store, "somebody", [key]):
            self.store.put(key, b"on its way")
            garbage.collect(self.store, older_than=timedelta(0), delete=True)
            assert self.store.exists(key)

    # What holds always.

    @invariant()
    def numbers_are_consecutive_and_nothing_is_lost(self) -> None:
        found = list(list_versions(self.store, "demo")) if self.published else []
        assert [manifest.version for manifest in found] == list(range(1, len(self.published) + 1))

    @invariant()
    def latest_is_the_highest_live_version(self) -> None:
        if self.live:
            assert open_manifest(self.store, "demo").version == max(self.live)

    @invariant()
    def channels_mean_their_last_move(self) -> None:
        for name, moves in self.moves.items():
            if moves and moves[-1] in self.retracted:
                with pytest.raises(RetractedError, match=self.retracted[moves[-1]]):
                    channels.resolve(self.store, "demo", name)
            else:
                assert channels.resolve(self.store, "demo", name) == (moves[-1] if moves else None)
            assert [entry.version for entry in channels.history(self.store, "demo", name)] == moves

    def teardown(self) -> None:
        for number in self.published:
            assert verify(self.store, self.manifest(number), deep=True) == []


def _run(new_url: Callable[[], str], examples: int, steps: int) -> None:
    machine = type("Machine", (Versions,), {"new_url": staticmethod(new_url)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            derandomize=True,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_histories_agree_with_a_model_in_memory() -> None:
    _run(lambda: f"memory://{uuid.uuid4().hex}", 30, 20)


def test_random_histories_agree_with_a_model_on_disk(tmp_path: Path) -> None:
    _run(lambda: str(tmp_path / uuid.uuid4().hex), 20, 20)


@pytest.mark.slow
def test_random_histories_agree_with_a_model_on_a_real_server(ceph_environment: str) -> None:
    _run(lambda: f"{ceph_environment}/{uuid.uuid4().hex}", 3, 12)
