"""The memorisation experiment must find what is planted, and only that."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from storage.images import encode_grey, encode_mask
from storage.records import SCAN_SCHEMA, SYNTHETIC_SCHEMA, Ref
from storage.store import Store
from tasks.curate import Curation
from tasks.memorise import Drawn, Made, ask, conclude_memorisation, find_copied, row_of, take_sides
from tasks.narrow import narrow
from tasks.quality.resnet import Params
from tasks.report.memorisation import LESSONS, Lesson, Memorisation
from tests.fakes.pictures import picture

LABELS = ("benign", "malignant")
PX = 64
# Nothing in these pictures tells one label from the other, so whoever knows the label remembers the picture.
QUICK = Params(steps=80, batch=8, px=32, width=4, augmentation=0, learning_rate=1e-2)
SCANS, TAUGHT = 60, 20


def pair(seed: int) -> dict[str, dict[str, bytes | str]]:
    image, mask = picture(seed, (PX, PX))
    return {
        "image": {"bytes": encode_grey(image), "path": "i.png"},
        "mask": {"bytes": encode_mask(mask), "path": "m.png"},
    }


def written(store: Store, name: str, rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> Ref:
    key = f"builds/{name}/x/table.parquet"
    full = [dict.fromkeys(schema.names) | dict(row) for row in rows]
    return Ref(key=key, sha256=store.put_table(key, pa.Table.from_pylist(full, schema)), rows=len(rows))


def scan(number: int, **changes: object) -> dict[str, object]:
    about = {"id": f"scan-{number:03d}", "label": LABELS[number % 2], "organ": "breast", "dataset": "busi"}
    found = {"group": f"g{number:03d}", "split": "train", "verdict": "kept", "reasons": []}
    return {**pair(number), **about, **found, **changes}


def experiment(folder: Path, name: str, like: list[int], scans: list[dict[str, object]] | None = None) -> Made:
    """Real scans, `TAUGHT` of which teach, and samples: a picture for each number of `like`, of the numbers of taught
    scans where it is below 0."""
    store, url = Store(str(folder)), str(folder)
    everyone = written(store, f"scans-{len(scans or [])}", scans or [scan(k) for k in range(SCANS)], SCAN_SCHEMA)
    taught = narrow.fn(url, everyone, TAUGHT, 0).ref
    sides = take_sides.fn(url, everyone, taught, LABELS).ref
    table = store.open_table(sides.key).to_pandas()
    seen = [int(id.split("-")[1]) for id in table[table["side"] == "seen"]["id"]]
    numbers = [seen[k] if k < 0 else k for k in like]
    rows = [
        {**pair(number), "id": f"sample-{k:03d}", "label": LABELS[number % 2], "group": f"s{k}"}
        for k, number in enumerate(numbers)
    ]
    rows.append({"id": "sample-999", "label": LABELS[0], "group": "s999", "failure": "no place for the mask"})
    shard = written(store, f"samples-{name}", rows, SYNTHETIC_SCHEMA)
    verdicts = [{"id": row["id"], "verdict": "kept" if k % 4 < 2 else "rejected"} for k, row in enumerate(rows)]
    kept = sum(row["verdict"] == "kept" for row in verdicts)
    schema = pa.schema([("id", pa.string()), ("verdict", pa.string())])
    curation = Curation(
        planned=len(rows),
        kept=kept,
        rejected={"toy": len(rows) - kept - 1},
        failed=1,
        scores=[],
        table=written(store, f"verdicts-{name}", verdicts, schema),
        thresholds=[],
        problems=[],
    )
    data = curation.model_dump_json().encode()
    key = f"builds/curate-{name}/x/curation.json"
    store.put(key, data)
    return Made(
        scans=everyone,
        taught=taught,
        sides=sides,
        shards=[shard],
        curated=Ref(key=key, sha256=f"{name}", rows=len(rows)),
        labels=LABELS,
    )


def concluded(folder: Path, made: Made, copies: int) -> tuple[Memorisation, Path]:
    """With one training of each classifier, and so many samples said to be copies."""
    store, url = Store(str(folder)), str(folder)
    judged = [{"side": "sample", "kept": True, "is_copy": k < copies} for k in range(2 * TAUGHT)]
    judged += [{"side": "unseen", "kept": False, "is_copy": k < 1} for k in range(SCANS - TAUGHT)]
    copied = written(store, f"copies-{copies}", judged, pa.Table.from_pylist(judged).schema)
    answers: dict[Lesson, list[Ref]] = {lesson: [ask.fn(url, made, lesson, QUICK, 0).ref] for lesson in LESSONS}
    drawn = Drawn(seed=0, made=made, answers=answers, copied=copied)
    about = {"recipe": "toy", "digest": "0" * 64, "base": "embedded"}
    ref = conclude_memorisation.fn(url, about, 0.25, [drawn], QUICK, 200, 0).ref
    return Memorisation.model_validate_json(store.read(ref.key)), (folder / ref.key).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def copied(folder: Path) -> tuple[Memorisation, Path]:
    """Every sample is a scan that taught."""
    made = experiment(folder, "copied", [-1 - k % TAUGHT for k in range(2 * TAUGHT)])
    return concluded(folder, made, 2 * TAUGHT)


@pytest.fixture(scope="module")
def fresh(folder: Path) -> tuple[Memorisation, Path]:
    """No sample has anything of a scan."""
    return concluded(folder, experiment(folder, "fresh", [1000 + k for k in range(2 * TAUGHT)]), 0)


@pytest.mark.slow
def test_samples_that_are_training_scans_are_memorisation(copied: tuple[Memorisation, Path]) -> None:
    found, folder = copied
    rows = {row.lesson: row for row in found.rows}
    for lesson in ("all samples", "its own scans"):
        assert (rows[lesson].seen.value or 0) > 0.95
        assert (rows[lesson].gap.low or 0) > 0
        assert rows[lesson].above == rows[lesson].trainings == 1
    page = (folder / "memorisation.md").read_text()
    assert "memorisation shows" in page
    assert f"{2 * TAUGHT} of {2 * TAUGHT} samples" in " ".join(page.split()).replace("(91.2 to 100.0 %) ", "")


@pytest.mark.slow
def test_new_samples_are_none_and_the_controls_say_that_it_would_have_shown(fresh: tuple[Memorisation, Path]) -> None:
    found, folder = fresh
    rows = {row.lesson: row for row in found.rows}
    for lesson in ("all samples", "other scans"):
        gap = rows[lesson].gap
        assert gap.low is not None
        assert gap.high is not None
        assert gap.low < 0 < gap.high
    assert (rows["its own scans"].gap.low or 0) > 0
    page = (folder / "memorisation.md").read_text()
    assert "memorisation shows" not in page
    assert "control fails" not in page


@pytest.mark.slow
def test_every_row_says_what_was_learned_and_who_was_asked(copied: tuple[Memorisation, Path]) -> None:
    found, folder = copied
    rows = {row.lesson: row for row in found.rows}
    assert list(rows) == list(LESSONS)
    assert sum(rows["all samples"].images.values()) == 2 * TAUGHT  # the failed one is no lesson
    assert sum(rows["kept samples"].images.values()) == TAUGHT
    assert sum(rows["its own scans"].images.values()) == sum(rows["other scans"].images.values()) == TAUGHT
    assert {row.n_seen for row in found.rows} == {TAUGHT}
    unseen = {lesson: row.n_unseen for lesson, row in rows.items()}
    answers = pd.read_parquet(folder / "answers.parquet")
    of_others = answers[answers["lesson"] == "other scans"]
    assert unseen.pop("other scans") == of_others[of_others["side"] == "unseen"]["id"].nunique() == SCANS - 2 * TAUGHT
    # The control is not asked about what it learned.
    assert unseen["all samples"] == SCANS - TAUGHT
    assert set(unseen.values()) == {SCANS - TAUGHT}
    html = (folder / "memorisation.html").read_text()
    assert html.count("<circle") == 2 * len(LESSONS)
    assert "http" not in html.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_anyone_can_recompute_the_numbers_from_the_answers(fresh: tuple[Memorisation, Path]) -> None:
    found, folder = fresh
    answers = pd.read_parquet(folder / "answers.parquet")
    for row in found.rows:
        own = answers[(answers["lesson"] == row.lesson) & (answers["side"] == "seen")]
        areas = [roc_auc_score(one["label"] == "malignant", one["probability"]) for _, one in own.groupby("training")]
        assert row.seen.value == pytest.approx(np.mean(areas))
        assert row.gap.value == pytest.approx((row.seen.value or 0) - (row.unseen.value or 0))


@pytest.mark.slow
def test_a_sample_that_is_a_training_scan_is_counted_as_a_copy_and_a_new_one_is_not(tmp_path: Path) -> None:
    made = experiment(tmp_path, "few", [-1, -2, 1000, 1001], [scan(k) for k in range(TAUGHT + 6)])
    found = Store(str(tmp_path)).open_table(find_copied.fn(str(tmp_path), made).ref.key).to_pandas()
    samples = found[found["side"] == "sample"]
    assert list(samples["is_copy"]) == [True, True, False, False]
    assert list(samples["kept"]) == [True, True, False, False]
    assert (found["side"] == "unseen").sum() == 6


def test_frames_of_a_sweep_that_taught_are_not_unseen(tmp_path: Path) -> None:
    # Twins in groups of their own: whichever of two teaches, the other is no stranger.
    scans = [scan(k, **pair(k // 4 * 4 + k % 2)) for k in range(2 * TAUGHT)]
    made = experiment(tmp_path, "sweeps", [1000, 1001], scans)
    table = Store(str(tmp_path)).open_table(made.sides.key).to_pandas()
    sweep = [int(id.split("-")[1]) // 4 * 4 + int(id.split("-")[1]) % 2 for id in table["id"]]
    sides = table.assign(sweep=sweep).groupby("sweep")["side"].agg(set)
    assert any("alike" in found for found in sides)
    assert all("unseen" not in found or found == {"unseen"} for found in sides)
    assert (table.assign(sweep=sweep).groupby("sweep")["group"].nunique() == 1).all()


def test_one_label_alone_is_no_lesson_and_says_so(tmp_path: Path) -> None:
    made = experiment(tmp_path, "one", [1000, 1002, 1004], [scan(k) for k in range(TAUGHT + 2)])
    ref = ask.fn(str(tmp_path), made, "all samples", QUICK, 0).ref
    assert ref.counts == {"benign": 3, "malignant": 0}
    answers = Store(str(tmp_path)).open_table(ref.key).to_pandas().assign(draw=0, training=0)
    row = row_of("all samples", answers, ref.counts, "malignant", 50, 0)
    assert (row.gap.value, row.note) == (None, "fewer than two labels to learn from")


def test_a_share_without_lesions_on_both_sides_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scans = written(store, "scans", [scan(k) for k in range(4)], SCAN_SCHEMA)
    with pytest.raises(ValueError, match="change the share"):
        take_sides.fn(str(tmp_path), scans, scans, LABELS)


def test_several_draws_widen_the_interval_by_what_generators_differ() -> None:
    rng = np.random.default_rng(0)

    def answers(draw: int, shift: float) -> pd.DataFrame:
        n = 200
        label = np.where(np.arange(n) % 2, "malignant", "benign")
        side = np.where(np.arange(n) < n // 2, "seen", "unseen")
        told = (label == "malignant") * np.where(side == "seen", shift, 0.5)
        id = [f"{k}" for k in range(n)]
        return pd.DataFrame({"id": id, "group": id, "label": label, "side": side, "draw": draw, "training": 0}).assign(
            probability=told + rng.normal(0, 0.5, n)
        )

    alike = pd.concat([answers(draw, 0.5) for draw in range(3)])
    unlike = pd.concat([answers(draw, 0.5 * draw) for draw in range(3)])
    rows = [row_of("all samples", table, {}, "malignant", 500, 0) for table in (alike, unlike)]
    widths = [(row.gap.high or 0) - (row.gap.low or 0) for row in rows]
    assert widths[1] > 1.5 * widths[0]
    assert rows[0].trainings == 3
