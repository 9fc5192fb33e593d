"""The whole path on tiny phantoms and a tiny random base: what is published, reused, resumed and refused."""

import errno
import json
import shutil
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools.coco import COCO

from flows.build_dataset import BuildResult, build_dataset
from flows.recipe import AUDITED, Recipe, parse
from storage import folder, keys
from storage.errors import RetractedError, StoreFullError
from storage.garbage import collect
from storage.images import decode_grey, decode_mask
from storage.pulling import pull
from storage.retractions import retract
from storage.store import Store
from storage.verifying import verify
from storage.versions import list_versions, open_manifest
from tasks import announce
from tasks.export import GateError
from tasks.quality import SET_SCORES, extractors
from tasks.quality.extractors import ExtractorParams
from tasks.score import origins
from tests.fakes.base import make_base
from tests.flows.builds import finish, kill, refs, start
from tests.flows.waiting import until
from tests.servers import api

pytestmark = pytest.mark.usefixtures("prefect_server")

SHARDS = 3


@pytest.fixture
def copied(built: tuple[Path, BuildResult], tmp_path: Path) -> Path:
    """A copy of the built store, to change."""
    return Path(shutil.copytree(built[0], tmp_path / "store"))


def test_counts_add_up_and_the_version_is_whole(built: tuple[Path, BuildResult]) -> None:
    root, result = built
    assert result.planned == 12 == result.kept + sum(result.rejected.values()) + result.failed
    assert (result.version, result.up_to_date) == (1, False)
    store = Store(str(root))
    assert verify(store, open_manifest(store, "tiny@latest"), deep=True) == []
    assert Path(result.uri).is_file()


def test_every_score_is_given_and_the_gate_says_pass(built: tuple[Path, BuildResult]) -> None:
    manifest = open_manifest(Store(str(built[0])), "tiny")
    assert [score.name for score in manifest.scores] == [*SET_SCORES, AUDITED]
    assert (manifest.gate, manifest.warnings) == (built[1].gate, built[1].warnings) == ("pass", [])


def test_score_tables_say_what_made_their_columns_and_what_quotas_may_ask_for(built: tuple[Path, BuildResult]) -> None:
    store = Store(str(built[0]))
    (real,) = (store.open_table(key) for key in store.list("builds/describe-real") if key.endswith(".parquet"))
    shards = [store.open_table(key) for key in store.list("builds/score") if key.endswith(".parquet")]
    assert len(shards) == SHARDS
    for table in [real, *shards]:
        made_by = origins(table)
        assert made_by == origins(real)
        assert made_by.features == extractors.load(ExtractorParams()).identity
        assert made_by.spaces == {name: make().identity for name, make in extractors.SPACES.items()}
        for row in table.to_pylist():
            answers = [] if row["failure"] else row["answers"]
            assert len(answers) == (0 if row["failure"] else len(made_by.labels))
            assert sum(answers) == pytest.approx(0 if row["failure"] else 1)
    samples = [row for table in shards for row in table.to_pylist() if row["failure"] is None]
    assert {row["margin"] for row in samples} <= {"circumscribed", "microlobulated", "spiculated"}
    assert {row["background_kind"] for row in samples} == {"simulated"}


def test_a_version_keeps_every_step_it_was_made_from_retracted_or_not(copied: Path, tiny: dict[str, Any]) -> None:
    store, tomorrow = Store(str(copied)), datetime.now(UTC) + timedelta(days=1, hours=1)
    steps = {keys.step_folder(key) for key in store.list(keys.BUILDS) if key.endswith("/ref.json")}
    assert set(open_manifest(store, "tiny").inputs) == steps
    assert store.list(keys.LEASES) == []
    gone: list[str] = []
    collect(store, builds=True, now=tomorrow, each=lambda item: gone.append(keys.step_folder(item.key)))
    retract(store, open_manifest(store, "tiny"), "wrong masks")
    collect(store, builds=True, now=tomorrow, each=lambda item: gone.append(keys.step_folder(item.key)))
    assert {folder.split("/")[1] for folder in gone} == {"latents"}  # a cache
    with pytest.raises(RetractedError, match="wrong masks"):
        build_dataset(recipe=parse(tiny), store=str(copied))


def test_a_second_build_is_up_to_date_and_makes_nothing(copied: Path, tiny: dict[str, Any], built: Any) -> None:
    again = build_dataset(recipe=parse(tiny), store=str(copied))
    assert again.up_to_date
    assert (again.version, again.digest) == (1, built[1].digest)
    assert again.reused["synthesize"] == SHARDS
    assert set(again.reused) == set(again.seconds)


def test_a_version_whose_build_died_before_it_told_is_told_of_once(
    copied: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse(tiny | {"curate": [{"score": "lesion_contrast", "min": 0.055}]})
    monkeypatch.setattr(announce, "KEPT_AFTER", timedelta(seconds=-1))  # a version of this moment counts too

    def killed(*version: object) -> None:
        raise KeyboardInterrupt

    def told() -> list[int]:
        versions = [event["payload"] for event in api.events(announce.PUBLISHED)]
        return [payload["version"] for payload in versions if payload["digest"] == second.digest]

    with monkeypatch.context() as patched:
        patched.setattr("flows.build_dataset.announce_version", killed)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(recipe=recipe, store=str(copied))
    store = Store(str(copied))
    second = open_manifest(store, "tiny@2")
    assert not store.exists(f"{keys.CATALOGUE}/index.html") or b"2 versions" not in store.read("catalogue/index.html")

    assert build_dataset(recipe=recipe, store=str(copied)).up_to_date
    until(lambda: told() == [2], 60)
    assert b"2 versions" in store.read("catalogue/index.html")

    with monkeypatch.context() as patched:
        patched.setattr("flows.build_dataset.announce_version", killed)
        assert build_dataset(recipe=recipe, store=str(copied)).up_to_date
    assert not announce.is_untold(second.model_copy(update={"created": (datetime.now(UTC) - timedelta(2)).isoformat()}))


@pytest.mark.parametrize(
    "changed",
    [
        {"curate": [{"score": "lesion_contrast", "min": 0.06}]},
        {
            "quotas": {"best": "segmenter_dice", "each": [{"where": {"label": "benign"}, "keep": 2}]},
            "select": {"by": "kid"},
        },
    ],
    ids=["thresholds", "quotas and selection"],
)
def test_curating_anew_synthesizes_and_scores_nothing(
    changed: dict[str, Any], copied: Path, tiny: dict[str, Any], built: Any
) -> None:
    result = build_dataset(recipe=parse(tiny | changed), store=str(copied))
    assert set(result.seconds) - set(result.reused) == {"curate", "export"}
    assert result.version == 2
    assert result.planned == built[1].planned == result.kept + sum(result.rejected.values()) + result.failed


def test_asking_for_more_makes_only_more(copied: Path, tiny: dict[str, Any]) -> None:
    result = build_dataset(recipe=parse(tiny | {"plan": {"samples": 16, "shard": 4}}), store=str(copied))
    assert result.planned == 16
    assert result.reused["synthesize"] == SHARDS


@pytest.mark.usefixtures("ray_without_token")
@pytest.mark.parametrize(
    "runner",
    [
        {"workers": 3, "kind": "threads"},
        pytest.param({"workers": 2, "kind": "ray"}, marks=pytest.mark.slow),
    ],
)
def test_every_runner_gives_the_same_bytes_as_one_worker(
    runner: dict[str, Any], tiny: dict[str, Any], built: Any, copied: Path
) -> None:
    made = {path: path.read_bytes() for path in copied.glob("builds/*/*/*.parquet")}
    for step in ("synthesize", "score"):
        shutil.rmtree(copied / "builds" / step)
    result = build_dataset(recipe=parse(tiny | {"runner": runner}), store=str(copied))
    assert result.digest == built[1].digest
    assert not {"synthesize", "score"} & set(result.reused)
    assert "train-adapter" in result.reused
    assert {path: path.read_bytes() for path in copied.glob("builds/*/*/*.parquet")} == made


def test_outside_the_declared_region_the_background_is_untouched(built: tuple[Path, BuildResult]) -> None:
    store = Store(str(built[0]))
    backgrounds = {
        row["id"]: decode_grey(row["image"]["bytes"])
        for key in store.list("builds/ingest")
        if key.endswith("scans.parquet")
        for row in store.open_table(key).to_pylist()
        if row["image"]
    }
    shards = [key for key in store.list("builds/synthesize") if key.endswith(".parquet")]
    rows = [row for key in shards for row in store.open_table(key).to_pylist() if row["failure"] is None]
    assert len(shards) == SHARDS
    assert rows
    for row in rows:
        image, region = decode_grey(row["image"]["bytes"]), decode_mask(row["region"]["bytes"])
        assert np.array_equal(image[~region], backgrounds[row["background_id"]][~region])
        assert decode_mask(row["mask"]["bytes"])[~region].sum() == 0
        assert row["outside_changed_px"] == 0


def test_every_row_names_what_drew_it(built: tuple[Path, BuildResult]) -> None:
    root, _ = built
    trained = {step: next(root.glob(f"builds/{step}/*/ref.json")) for step in ("train-harmonizer", "tune-decoder")}
    digests = {step: json.loads(file.read_text())["sha256"] for step, file in trained.items()}
    scans = pd.concat(pd.read_parquet(file, columns=["id", "split"]) for file in root.glob("builds/ingest/*/*.parquet"))
    seen = set(scans[scans["split"] == "train"]["id"])
    store = Store(str(root))
    shards = [key for key in store.list("builds/synthesize") if key.endswith(".parquet")]
    rows = [row for key in shards for row in store.open_table(key).to_pylist() if row["failure"] is None]
    assert {row["harmonizer_digest"] for row in rows} == {digests["train-harmonizer"]}
    assert {row["decoder_digest"] for row in rows} == {digests["tune-decoder"]}
    assert not {row["adapter_digest"] for row in rows} & set(digests.values())
    assert {row["levels_id"] for row in rows} <= seen


def test_synthetic_backgrounds_are_drawn_kept_and_declared(tiny: dict[str, Any], tmp_path: Path) -> None:
    drawn = tiny | {
        "background": "synthetic",
        "background_drawing": {"steps": 2, "strength": 0.5},
        "base": str(make_base(tmp_path / "base", channels=9, px=64)),
        "plan": {"samples": 4, "shard": 4},
        "curate": [],
    }
    store = Store(str(tmp_path / "store"))
    result = build_dataset(recipe=parse(drawn), store=store.url)
    assert result.failed < 4
    pull(store, open_manifest(store, "tiny"), tmp_path / "tiny")
    frame = pd.concat(pd.read_parquet(file) for file in (tmp_path / "tiny" / "data").glob("*.parquet"))
    scans = {
        row["id"]: decode_grey(row["image"]["bytes"])
        for key in store.list("builds/ingest")
        if key.endswith("scans.parquet")
        for row in store.open_table(key).to_pylist()
        if row["image"]
    }
    for row in frame.to_dict("records"):
        image, region = decode_grey(row["image"]["bytes"]), decode_mask(row["region"]["bytes"])
        background = decode_grey(row["background"]["bytes"])
        assert row["background_kind"] == "synthetic"
        assert np.array_equal(image[~region], background[~region])
        assert not np.array_equal(background, scans[row["background_id"]])
        assert (row["background_strength"], row["outside_changed_px"]) == (0.5, 0)
        assert -1 <= row["background_similarity"] < 1
        assert row["mask_kind"] == "donor"
        assert row["margin"] in ("circumscribed", "microlobulated", "spiculated")
        assert row["orientation"] in ("parallel", "not parallel")


def test_every_planned_sample_is_a_row_of_the_ledger(built: tuple[Path, BuildResult], tmp_path: Path) -> None:
    root, result = built
    store = Store(str(root))
    pull(store, open_manifest(store, "tiny"), tmp_path / "tiny")
    ledger = pd.read_parquet(tmp_path / "tiny" / "ledger.parquet")
    assert len(ledger) == result.planned
    verdicts = Counter(ledger["verdict"])
    assert verdicts["kept"] == result.kept
    assert verdicts["failed"] == result.failed
    assert all(len(reasons) > 0 for reasons in ledger.loc[ledger["verdict"] != "kept", "reasons"])


# pycocotools 2.0.11 with NumPy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_everyone_reads_the_version_with_their_own_tools(built: tuple[Path, BuildResult], tmp_path: Path) -> None:
    root, result = built
    store = Store(str(root))
    manifest = open_manifest(store, "tiny@1")
    pull(store, manifest, tmp_path / "parquet", format="parquet")
    pull(store, manifest, tmp_path / "coco", format="coco")
    pattern = str(tmp_path / "parquet" / "data" / "*.parquet")

    frame = pd.concat(pd.read_parquet(file) for file in sorted((tmp_path / "parquet" / "data").glob("*.parquet")))
    assert len(frame) == result.kept
    loaded = datasets.load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded[0]["image"].size == (64, 64)
    assert duckdb.sql(f"select count(*) from '{pattern}'").fetchall() == [(result.kept,)]

    (annotations,) = (tmp_path / "coco").rglob("train.json")
    coco = COCO(str(annotations))
    masks = {row["id"]: decode_mask(row["mask"]["bytes"]) for row in frame.to_dict("records")}
    assert len(coco.imgs) == result.kept
    for image in coco.imgs.values():
        (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        with Image.open(tmp_path / "coco" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
        assert np.array_equal(coco.annToMask(annotation).astype(bool), masks[Path(image["file_name"]).stem])


def test_a_set_that_misses_the_gate_is_not_published_and_leaves_its_report(copied: Path, tiny: dict[str, Any]) -> None:
    gated = tiny | {"name": "gated", "gate": {"min_kept": 1000}}
    with pytest.raises(GateError, match="1000") as caught:
        build_dataset(recipe=parse(gated), store=str(copied))
    assert "plan about" in str(caught.value)  # what would have to change
    report = Path(str(caught.value).rsplit("report: ", 1)[1])
    assert "1000" in report.read_text()
    assert [m.dataset for m in list_versions(Store(str(copied)))] == ["tiny"]


def test_a_set_of_which_nothing_is_kept_is_refused_with_its_report(copied: Path, tiny: dict[str, Any]) -> None:
    nothing = tiny | {"name": "nothing", "curate": [{"score": "lesion_contrast", "min": 100}]}
    with pytest.raises(GateError, match="0 samples kept") as caught:
        build_dataset(recipe=parse(nothing), store=str(copied))
    assert Path(str(caught.value).rsplit("report: ", 1)[1]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("finished", "runner"),
    [
        ("synthesize", {"workers": 2, "kind": "processes"}),
        ("curate", {}),
    ],
)
def test_a_killed_build_resumes_to_the_same_bytes(
    finished: str, runner: dict[str, Any], tiny: dict[str, Any], built: Any, tmp_path: Path
) -> None:
    recipe, store = tmp_path / "tiny.json", tmp_path / "store"
    recipe.write_text(json.dumps(tiny | {"runner": runner}))
    first = start(recipe, store)
    while first.poll() is None and not list(store.glob(f"builds/{finished}/*/ref.json")):
        time.sleep(0.02)
    kill(first)
    before = {path: path.stat().st_mtime_ns for path in refs(store)}
    assert before

    result = finish(start(recipe, store), store)
    assert result.digest == built[1].digest
    assert sum(result.reused.values()) >= len(before) - 1  # export, if it finished, is found rather than counted
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())


@pytest.mark.slow
def test_two_builds_of_one_recipe_at_once_make_one_version(tiny: dict[str, Any], built: Any, tmp_path: Path) -> None:
    recipe, store = tmp_path / "tiny.json", tmp_path / "store"
    recipe.write_text(json.dumps(tiny))
    running = [start(recipe, store) for _ in range(2)]
    results = [finish(process, store) for process in running]
    assert {result.digest for result in results} == {built[1].digest}
    assert len(list(list_versions(Store(str(store))))) == 1


def test_recipe_files_of_the_version_rebuild_it(built: tuple[Path, BuildResult], tiny: dict[str, Any]) -> None:
    manifest = open_manifest(Store(str(built[0])), "tiny")
    assert Recipe.model_validate(manifest.recipe).digest() == parse(tiny).digest()


def test_a_full_disk_leaves_nothing_half_published_and_the_next_build_goes_on(
    tiny: dict[str, Any], built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, room = tmp_path / "store", 12
    write = folder._write

    def write_while_there_is_room(path: Path, data: bytes) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(folder, "_write", write_while_there_is_room)
    with pytest.raises(StoreFullError, match="space"):
        build_dataset(recipe=parse(tiny), store=str(store))
    monkeypatch.undo()
    assert list(list_versions(Store(str(store)))) == []
    result = build_dataset(recipe=parse(tiny), store=str(store))
    assert result.digest == built[1].digest
    assert result.reused


def test_a_base_without_a_unet_is_refused_before_anything_is_published(tiny: dict[str, Any], tmp_path: Path) -> None:
    broken = tmp_path / "base"
    shutil.copytree(tiny["base"], broken)
    shutil.rmtree(broken / "unet")
    with pytest.raises(ValueError, match="unet"):
        build_dataset(recipe=parse(tiny | {"base": str(broken)}), store=str(tmp_path / "store"))
    assert list(list_versions(Store(str(tmp_path / "store")))) == []


def test_a_source_that_is_not_there_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    missing = tiny | {"source": {"dataset": "busi", "root": str(tmp_path / "nowhere")}}
    with pytest.raises(ValueError, match="nowhere"):
        build_dataset(recipe=parse(missing), store=str(tmp_path / "store"))


def test_a_source_without_healthy_scans_says_so(tiny: dict[str, Any], tmp_path: Path) -> None:
    sick = tiny | {"source": {"dataset": "phantom", "count": 30, "px": 64, "normal": 0.0, "malignant": 0.5}}
    with pytest.raises(ValueError, match="no normal scan in the training split"):
        build_dataset(recipe=parse(sick), store=str(tmp_path / "store"))


def test_documents_are_about_every_file_and_name_all_that_rows_descend_from(built: tuple[Path, BuildResult]) -> None:
    store = Store(str(built[0]))
    files = {file.path: file for file in open_manifest(store, "tiny").files}
    statement = json.loads(store.read(files["provenance.json"].key))
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert subjects == {path: file.sha256 for path, file in files.items() if path != "provenance.json"}
    listed = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    named = {one["digest"]["sha256"]: one["name"] for one in listed if "digest" in one}
    for row in store.open_table(files["metadata.parquet"].key).to_pylist():
        found = [named[row[f"{part}_digest"]] for part in ("base", "decoder", "harmonizer", "adapter")]
        assert found == ["base", "decoder", "harmonizer", f"adapter/{row['label']}"]
        assert row["licence"] == "Apache-2.0 AND other: not stated"  # the tiny base states none
