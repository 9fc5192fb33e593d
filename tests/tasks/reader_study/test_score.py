"""What readers said, against scikit-learn, known readers, and files that are not what they should be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tasks.reader_study import Answers, Key, Shown
from tasks.score_readers import findings, rows, score, scored
from tests.tasks.reader_study.studies import answered, made_key, sealed, written

KEY = made_key(30, again=10)


def able(gap: float, seed: int, key: Key = KEY) -> Callable[[Shown], int]:
    """A reader whose impression of synthetic pictures is `gap` standard deviations off."""
    rng = np.random.default_rng(seed)
    felt = {one.id: rng.normal(gap * (one.truth == "synthetic")) for one in key.pictures}
    return lambda one: int(np.digitize(felt[one.id] + 0.3 * rng.normal(), [-0.6, 0.2, 0.8, 1.6])) + 1


def perfect(one: Shown) -> int:
    return 5 if one.truth == "synthetic" else 1


def one_reader(say: Callable[[Shown], int], seed: int = 0, name: str = "a") -> tuple[str, Answers]:
    return f"{name}.json", answered(KEY, say, name, seed)


@pytest.mark.parametrize("gap", [-0.5, 0.0, 0.7, 2.5])
def test_the_auc_is_that_of_scikit_learn(gap: float) -> None:
    file = one_reader(able(gap, 1))
    found = scored(KEY, [file])
    first = {one.id: one.answer for one in file[1].answers if one.showing == 1}
    truths = [one.truth == "synthetic" for one in KEY.pictures]
    expected = roc_auc_score(truths, [first[one.id] for one in KEY.pictures])
    auc = found.readers[0].auc
    assert auc.value == pytest.approx(expected, abs=1e-12)
    assert auc.low is not None
    assert auc.high is not None
    assert 0 <= auc.low < expected < auc.high <= 1
    assert found.auc == auc
    assert found.auc_all_readers is None
    assert found.alpha is None


def test_a_perfect_reader_has_one_and_an_interval_that_knows_the_number_of_patients() -> None:
    found = scored(KEY, [one_reader(perfect)]).readers[0]
    assert found.auc.value == found.auc.high == 1
    assert found.auc.low == pytest.approx(0.886, abs=1e-3)  # Wilson: 30 of 30
    assert (found.accuracy.found, found.accuracy.of, found.unsure) == (60, 60, 0)
    assert found.same is not None
    assert (found.same.found, found.same.of) == (10, 10)
    assert found.alpha is not None
    assert found.alpha.value == pytest.approx(1)


def test_intervals_of_readers_who_guess_hold_one_half_as_often_as_they_should() -> None:
    holding = [scored(KEY, [one_reader(able(0, seed), seed)]).auc for seed in range(60)]
    assert sum((one.low or 1) <= 0.5 <= (one.high or 0) for one in holding) >= 54


def test_pictures_of_one_patient_are_worth_less_than_those_of_many() -> None:
    shared = [one.model_copy(update={"group": one.truth + one.group[-1]}) for one in KEY.pictures]
    few = KEY.model_copy(update={"pictures": shared})
    rng = np.random.default_rng(2)
    felt = {group: int(rng.integers(1, 5)) for group in sorted({one.group for one in shared})}
    felt |= {f"g{one.name[1:]}": felt[one.truth + one.name[-1]] for one in KEY.pictures}

    def say(one: Shown) -> int:  # alike for all pictures of a patient
        return felt[one.group] + (one.truth == "synthetic")

    files = [("a", answered(few, say))]
    narrow, wide = scored(KEY, [("a", answered(KEY, say))]).auc, scored(few, files).auc
    assert narrow.value == wide.value
    assert found_width(wide) > 1.5 * found_width(narrow)
    assert scored(few, files).groups == len({one.group for one in few.pictures}) < 60


def found_width(estimate: Any) -> float:
    return estimate.high - estimate.low


def test_several_readers_have_a_mean_and_other_readers_a_wider_interval() -> None:
    files = [one_reader(able(gap, seed), seed, f"r{seed}") for seed, gap in enumerate((0.7, 1.0, 1.4))]
    found = scored(KEY, files)
    values = [reader.auc.value for reader in found.readers]
    assert found.auc.value == pytest.approx(np.mean(values))
    assert found.auc_all_readers is not None
    assert found.auc_all_readers.value == pytest.approx(np.mean(values))
    assert found_width(found.auc_all_readers) > found_width(found.auc)
    assert found.alpha is not None
    assert found.alpha.low is not None
    assert -1 < found.alpha.low < (found.alpha.value or 0) < (found.alpha.high or 0) < 1
    assert [row[0] for row in rows(found)] == ["r0", "r1", "r2", "mean, these readers", "mean, all readers"]
    assert "3 readers tell 30 synthetic from 30 real pictures with an AUC of" in findings(found)[0]
    assert "above 0.5: synthetic pictures can be told from real ones" in " ".join(findings(found))


def test_equal_readers_agree_and_have_the_interval_of_one() -> None:
    say = {one.id: able(0.8, 7)(one) for one in KEY.pictures}
    files = [(name, answered(KEY, lambda one: say[one.id], name, seed)) for seed, name in enumerate("ab")]
    found, alone = scored(KEY, files), scored(KEY, files[:1])
    assert found.alpha is not None
    assert found.alpha.value == pytest.approx(1)
    assert found.auc == alone.auc
    assert found.auc_all_readers is not None
    assert found.auc_all_readers.low == pytest.approx(alone.auc.low, abs=1e-9)


def test_unsure_is_neither_right_nor_wrong_and_the_rest_is_counted() -> None:
    order = sorted(KEY.pictures, key=lambda one: (one.truth, one.id))
    said = {one.id: 3 if number % 3 == 0 else (2 if number % 3 == 1 else 4) for number, one in enumerate(order)}
    found = scored(KEY, [one_reader(lambda one: said[one.id])]).readers[0]
    assert (found.accuracy.found, found.accuracy.of, found.unsure) == (20, 40, 20)
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((0.352, 0.648), abs=1e-3)
    everywhere = scored(KEY, [one_reader(lambda one: 3)])
    assert (everywhere.readers[0].accuracy.of, everywhere.auc.value) == (0, 0.5)
    assert everywhere.readers[0].alpha is not None
    assert everywhere.readers[0].alpha.value is None
    assert "holds 0.5, so no difference was shown" in " ".join(findings(everywhere))


def test_time_is_the_median_of_first_showings_and_second_answers_count_for_agreement_alone() -> None:
    file, answers = one_reader(perfect)
    changed = [
        one.model_copy(update={"ms": 1000 * one.place, "answer": 1 if one.showing == 2 else one.answer})
        for one in answers.answers
    ]
    found = scored(KEY, [(file, sealed(answers, answers=[one.model_dump() for one in changed]))]).readers[0]
    assert found.median_s == 29.5
    assert found.auc.value == 1
    again = {one.id for one in KEY.pictures if one.id in KEY.again and one.truth == "real"}
    assert found.same is not None
    assert found.same.found == len(again)


# Files.


def test_files_are_read_and_the_key_is_found_beside_them(tmp_path: Path) -> None:
    files = written(tmp_path, KEY, [answered(KEY, able(1, seed), f"Ä {seed}", seed) for seed in range(2)])
    (tmp_path / "another.key.json").write_text("no key at all")
    (tmp_path / "older.key.json").write_text(made_key(5).model_dump_json())
    found = score(files)
    assert [reader.reader for reader in found.readers] == ["Ä 0", "Ä 1"]
    assert found == score(files, tmp_path / "study.key.json")
    assert len(found.pictures) == 60
    assert all(len(one.answers) == 2 for one in found.pictures)


def _changed(content: dict[str, Any]) -> None:
    content["answers"][4]["answer"] = 6 - content["answers"][4]["answer"]


BAD: dict[str, tuple[Callable[[Answers], str], str]] = {
    "no JSON": (lambda _: "nothing", "holds no answers of a reader study .*expected the JSON that the page saved"),
    "another JSON": (lambda _: '{"a": 1}', "holds no answers of a reader study"),
    "the key": (lambda _: KEY.model_dump_json(), "is a key, not answers: give it as --key"),
    "edited": (
        lambda good: json.dumps(
            good.model_dump()
            | {"answers": [one.model_dump() | {"answer": 5 if one.answer < 5 else 1} for one in good.answers]}
        ),
        "was changed or cut off after the page saved it",
    ),
    "renamed": (
        lambda good: json.dumps(good.model_dump() | {"reader": "somebody"}),
        "was changed or cut off after the page saved it",
    ),
    "out of range": (
        lambda good: json.dumps(good.model_dump()).replace('"answer": 1', '"answer": 9'),
        r"answers\.\d+\.answer: Input should be less than or equal to 5",
    ),
    "unfinished": (
        lambda good: sealed(
            good, finished=False, answers=[one.model_dump() for one in good.answers[:50]]
        ).model_dump_json(),
        "is unfinished: 50 of 70 answered",
    ),
    "finished by hand": (
        lambda good: sealed(good, answers=[one.model_dump() for one in good.answers[:50]]).model_dump_json(),
        "is unfinished: 50 of 70 answered",
    ),
    "another study": (
        lambda _: answered(made_key(30, again=10, seed=5), perfect, "b").model_dump_json(),
        r"answers study [0-9a-f]{16}, the key is of study",
    ),
    "other pictures": (
        lambda good: sealed(good, order=[*good.order[:-1], "ffffffffffff"]).model_dump_json(),
        "does not fit its study",
    ),
    "one twice more": (
        lambda good: sealed(good, order=[*good.order, good.order[0]]).model_dump_json(),
        "does not fit its study",
    ),
    "answers of other places": (
        lambda good: sealed(
            good, answers=[one.model_dump() | {"place": 69 - one.place} for one in good.answers]
        ).model_dump_json(),
        "does not fit its study",
    ),
    "the same session": (
        lambda _: answered(KEY, perfect, "a").model_dump_json(),
        r"reader0\.json and .*reader1\.json are of the same session",
    ),
    "the same reader": (
        lambda _: answered(KEY, perfect, " A ", 9).model_dump_json(),
        r"reader0\.json and .*reader1\.json are of the same reader",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_not_what_it_should_be_is_one_clear_error(tmp_path: Path, what: str) -> None:
    make, message = BAD[what]
    files = written(tmp_path, KEY, [answered(KEY, perfect, "a"), answered(KEY, perfect, "b", 1)])
    good = Answers.model_validate_json(files[1].read_text())
    files[1].write_text(make(good))
    with pytest.raises(ValueError, match=message):
        score(files, tmp_path / "study.key.json")


def test_a_key_that_was_edited_or_is_missing_scores_nothing(tmp_path: Path) -> None:
    files = written(tmp_path, KEY, [answered(KEY, perfect, "a")])
    text = (tmp_path / "study.key.json").read_text()
    (tmp_path / "study.key.json").write_text(text.replace('"truth":"real"', '"truth":"synthetic"', 1))
    with pytest.raises(ValueError, match="a key that was edited is another study too"):
        score(files, tmp_path / "study.key.json")
    with pytest.raises(ValueError, match=r"no key of study [0-9a-f]{16} lies beside the answers or here"):
        score(files)
    with pytest.raises(ValueError, match="is no key of a reader study"):
        score(files, files[0])
    with pytest.raises(ValueError, match="no files to score"):
        score([])
    with pytest.raises(FileNotFoundError):
        score([tmp_path / "nothing.json"])
