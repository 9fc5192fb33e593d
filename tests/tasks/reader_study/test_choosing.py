"""What is shown must not tell by anything but the pictures."""

from collections import Counter

import numpy as np
import pytest

from tasks.reader_study.choosing import Candidate, choose, rounds, twice

RNG = np.random.default_rng


def candidates(side: str, count: int, labels: int = 2, per_group: int = 3) -> list[Candidate]:
    return [
        Candidate(f"{side}{k}", "abc"[k % labels], f"{side}-group{k // per_group}", f"{side}-sha{k}")
        for k in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_both_sides_have_as_many_of_each_label_and_no_patient_twice(seed: int) -> None:
    (wave,) = choose(candidates("r", 50, 3), candidates("s", 90), 12, 1, RNG(seed))
    assert len(wave.real) == len(wave.synthetic) == 12
    assert Counter(one.label for one in wave.real) == Counter(one.label for one in wave.synthetic) == {"a": 6, "b": 6}
    groups = [one.group for one in (*wave.real, *wave.synthetic)]
    assert len(set(groups)) == len(groups)


def test_more_of_a_patient_are_shown_only_where_asked_for_and_in_another_wave() -> None:
    real, made = candidates("r", 30, 1), candidates("s", 30, 1)
    assert sum(len(wave.real) for wave in choose(real, made, 30, 1, RNG(0))) == 10
    waves = choose(real, made, 25, 3, RNG(0))
    assert [len(wave.real) for wave in waves] == [10, 10, 5]
    for wave in waves:
        assert len({one.group for one in wave.real}) == len(wave.real) == len(wave.synthetic)
    assert len({one.name for wave in waves for one in (*wave.real, *wave.synthetic)}) == 50


def test_nobody_is_on_both_sides_and_equal_pictures_count_once() -> None:
    real = [*candidates("r", 6, 1, 1), Candidate("again", "a", "other", "r-sha0")]
    made = [
        Candidate("same patient", "a", "r-group1", "x"),
        Candidate("same pixels", "a", "y", "r-sha2"),
        *candidates("s", 9, 1, 1),
    ]
    (wave,) = choose(real, made, 20, 1, RNG(1))
    assert sorted(one.name for one in wave.real) == [f"r{k}" for k in range(6)]
    assert {one.name for one in wave.synthetic} <= {f"s{k}" for k in range(9)}


def test_where_labels_are_unknown_they_do_not_count() -> None:
    real = [Candidate(f"r{k}", None, f"g{k}", f"r{k}") for k in range(8)]
    (wave,) = choose(real, candidates("s", 30), 5, 1, RNG(2))
    assert len(wave.real) == len(wave.synthetic) == 5


def test_sides_without_a_common_label_have_nothing_to_show() -> None:
    made = [Candidate("s", "z", "gs", "s")]
    assert choose(candidates("r", 9), made, 5, 1, RNG(0)) == []


def test_half_of_those_shown_twice_are_real() -> None:
    (wave,) = choose(candidates("r", 40, 1, 1), candidates("s", 40, 1, 1), 20, 1, RNG(0))
    counts = set[int]()
    for seed in range(20):
        again = twice(wave, 7, RNG(seed))
        assert len(set(again)) == 7
        counts.add(sum(one.name.startswith("r") for one in again))
    assert counts == {3, 4}
    with pytest.raises(ValueError, match="21 pictures cannot be shown twice: at most half of the first 40, so 20"):
        twice(wave, 21, RNG(0))


@pytest.mark.parametrize(("waves", "again"), [([41], 9), ([40], 20), ([30, 20], 6), ([12, 10, 8], 5), ([4], 2)])
def test_a_second_showing_is_far_from_the_first_however_rounds_are_shuffled(waves: list[int], again: int) -> None:
    ids = [[f"{wave}-{k}" for k in range(count)] for wave, count in enumerate(waves)]
    repeated = ids[0][:again]
    parts = rounds(ids, repeated)
    assert Counter(id for part in parts for id in part) == Counter([id for wave in ids for id in wave] + repeated)
    assert set(repeated) <= set(parts[0])
    assert set(repeated) <= set(parts[-1])
    assert sum(map(len, parts[1:-1])) >= waves[-1] // 2
