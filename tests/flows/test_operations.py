"""The flows that keep a store in order and a dataset up to date, on a tiny dataset and on made-up versions."""

import shutil
import time
from datetime import UTC, datetime, timedelta
from os import utime
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import TagsContext

from flows.operations import (
    BrokenVersionsError,
    Sensed,
    after_publication,
    build_when_changed,
    collect_garbage,
    recurate,
    verify_versions,
)
from flows.recipe import Recipe, parse
from storage.errors import VersionNotFoundError
from storage.retractions import retract
from storage.store import Store
from storage.versions import open_manifest, publish
from tasks.export import GateError
from tasks.quality.gate import GateParams
from tasks.quality.thresholds import Threshold
from tests.fakes.base import make_base
from tests.storage import published

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Random weights and as little of everything as there may be."""
    few = {"steps": 2, "warmup": 1, "batch": 2}
    return parse(
        {
            "name": "tiny",
            "source": {"dataset": "phantom", "count": 40, "px": 64},
            "screen": {"px": 64},
            "base": str(make_base(tmp_path_factory.mktemp("base"), channels=9)),
            "lora": {**few, "validate_every": 2, "checkpoint_every": 2, "rank": 2},
            "judges": {
                "classifier": {"steps": 2},
                "segmenter": {"steps": 2},
                "detector": {"steps": 2},
                "critic": {"generated": 10, "training": {"steps": 2}},
            },
            "plan": {"samples": 8, "shard": 4},
            "audit": None,
            "set_scores": ["kid"],
            "stages": [{"stage": "layout"}, {"stage": "lesion", "steps": 2}],
            "curate": [{"score": "lesion_contrast", "min": 0.0}],
            "formats": ["parquet"],
        }
    )


@pytest.fixture(scope="module")
def sensed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> tuple[Path, Sensed]:
    """A store, and what the sensor did for it when it was empty."""
    store = tmp_path_factory.mktemp("sensed") / "store"
    return store, build_when_changed(recipe=recipe, store=str(store))


@pytest.fixture
def copied(sensed: tuple[Path, Sensed], tmp_path: Path) -> str:
    """A copy of that store, to change."""
    return str(shutil.copytree(sensed[0], tmp_path / "store"))


def test_a_sensor_builds_what_is_new(sensed: tuple[Path, Sensed]) -> None:
    _, first = sensed
    assert (first.why, first.version) == ("no version yet", "tiny@1")
    assert first.build is not None


def test_a_sensor_that_finds_nothing_new_builds_nothing_in_seconds(recipe: Recipe, copied: str) -> None:
    before = time.monotonic()
    again = build_when_changed(recipe=recipe, store=copied)
    assert time.monotonic() - before < 10
    assert (again.version, again.build) == ("tiny@1", None)
    assert again.why == "nothing new: tiny@1 was made of these scans by this recipe"
    assert again.why in page("tiny-source")


def test_a_retracted_version_is_not_built_again_from_the_same(recipe: Recipe, copied: str) -> None:
    retract(Store(copied), open_manifest(Store(copied), "tiny@1"), "wrong masks")
    assert build_when_changed(recipe=recipe, store=copied).build is None


def test_other_thresholds_draw_nothing_again(recipe: Recipe, copied: str) -> None:
    stricter = recurate(recipe=recipe, store=copied, curate=[Threshold(score="lesion_contrast", min=0.02)])
    assert (stricter.version, stricter.up_to_date) == (2, False)
    assert stricter.reused["synthesize"] == stricter.reused["score"] == 2
    (before, after) = (open_manifest(Store(copied), f"tiny@{number}").recipe for number in (1, 2))
    assert after == before | {"curate": after["curate"]} != before


def test_a_changed_recipe_or_source_is_seen(recipe: Recipe, copied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Recipe] = []
    tagged: list[set[str]] = []

    class AskedError(Exception):
        """The build that was asked for, which is not what is tested."""

    def build(recipe: Recipe, store: str, limit: str | None) -> None:
        asked.append(recipe)
        tagged.append(TagsContext.get().current_tags)
        raise AskedError

    monkeypatch.setattr("flows.operations.build_dataset", build)
    monkeypatch.setattr("flows.operations.flow_run", SimpleNamespace(tags=["sonoforge"]))  # as a deployment's run has
    more = recipe.source.model_copy(update={"count": 41})
    thresholds = [Threshold(score="lesion_contrast", min=0.01)]
    for changed in ({"source": more}, {"curate": thresholds}):
        with pytest.raises(AskedError):
            build_when_changed(recipe=recipe.model_copy(update=changed), store=copied)
    assert [one.digest() == recipe.digest() for one in asked] == [False, False]
    assert tagged == [{"sonoforge"}] * 2
    with pytest.raises(ValueError, match="holds nothing that was made of the scans of tiny"):
        recurate(recipe=recipe.model_copy(update={"source": more}), store=copied)


def test_a_missed_gate_fails_the_sensor_once(recipe: Recipe, copied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = recipe.model_copy(update={"gate": GateParams(min_kept=9)})
    with pytest.raises(GateError, match="tiny is not published: the set misses its gate"):
        build_when_changed(recipe=strict, store=copied)

    def build(recipe: Recipe, store: str, limit: str | None) -> None:
        raise AssertionError("built again what the gate has refused")

    with monkeypatch.context() as patched:
        patched.setattr("flows.operations.build_dataset", build)
        again = build_when_changed(recipe=strict, store=copied)
    assert (again.version, again.build) == (None, None)
    assert again.why.startswith("nothing new: of these scans by this recipe, tiny is not published: the set misses")
    assert again.why in page("tiny-source")
    assert "report: " in again.why

    lenient = strict.model_copy(update={"gate": GateParams(min_kept=1)})
    assert build_when_changed(recipe=lenient, store=copied).version == "tiny@1"  # the recipe of before, not the refusal


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """demo@1 and demo@2."""
    opened = Store(tmp_path / "store")
    for count in (12, 16):
        publish(opened, "demo", tmp_path / str(count), published.fill(tmp_path / str(count), count))
    return opened


def break_a_picture_file(store: Store, version: str) -> None:
    """Change one byte, not the size, of a file that no other version shares."""
    file = next(file for file in open_manifest(store, version).files if file.path.endswith("00001.parquet"))
    path = Path(store.url) / file.key
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.chmod(0o644)
    path.write_bytes(content)


def page(key: str) -> str:
    """What the latest run put on its page."""
    chosen = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        (latest,) = client.read_artifacts(artifact_filter=chosen, sort=ArtifactSort.CREATED_DESC, limit=1)
    return f"{latest.description} {latest.data}"


def test_all_versions_are_verified_and_the_damaged_named(store: Store) -> None:
    retract(store, open_manifest(store, "demo@1"), "wrong masks")
    assert verify_versions(store=store.url) == 2
    assert "0 of 2 versions are damaged" in page("verification")
    break_a_picture_file(store, "demo@2")
    assert verify_versions(store=store.url, deep=False) == 2
    with pytest.raises(BrokenVersionsError, match=r"1 of 2 versions are damaged in .*\n  - demo@2: .*00001\.parquet"):
        verify_versions(store=store.url)
    assert "1 of 2 versions are damaged" in page("verification")


def test_a_damaged_manifest_does_not_hide_the_versions_after_it(store: Store) -> None:
    manifest = Path(store.url) / "demo" / "versions" / "1" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text().replace("demo", "dema", 1))
    break_a_picture_file(store, "demo@2")
    with pytest.raises(BrokenVersionsError, match=r"2 of 2 versions(.|\n)*- demo@1: (.|\n)*- demo@2: "):
        verify_versions(store=store.url)


def test_versions_that_were_removed_by_hand_are_passed_over(store: Store) -> None:
    shutil.rmtree(Path(store.url) / "demo" / "versions" / "1")
    assert verify_versions(store=store.url, dataset="demo") == 1
    with pytest.raises(VersionNotFoundError, match="no dataset 'dema'"):
        verify_versions(store=store.url, dataset="dema")


def test_garbage_is_shown_and_deleted_only_when_asked(store: Store) -> None:
    manifest = open_manifest(store, "demo@2")
    shutil.rmtree(Path(store.url) / "demo" / "versions" / "2")
    old = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    for file in manifest.files:
        utime(Path(store.url) / file.key, (old, old))
    found = collect_garbage(store=store.url)
    assert not found.deleted
    assert found.objects > 0
    assert "to delete" in page("garbage")
    assert collect_garbage(store=store.url, older_than_h=72).objects == 0
    deleted = collect_garbage(store=store.url, delete=True)
    assert (deleted.deleted, deleted.found) == (True, found.found)
    assert collect_garbage(store=store.url).objects == 0
    assert verify_versions(store=store.url) == 1


def test_a_published_version_is_verified_and_described(store: Store) -> None:
    assert after_publication(version="demo@2", store=store.url) == open_manifest(store, "demo@2").digest
    assert "demo@2: every byte is as it was published" in page("demo-published")
    assert "| fid | 1.5 |" in page("demo-published")
    break_a_picture_file(store, "demo@2")
    with pytest.raises(BrokenVersionsError, match=r"demo@2 in .* is damaged"):
        after_publication(version="demo@2", store=store.url)
