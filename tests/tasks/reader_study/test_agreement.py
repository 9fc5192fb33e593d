"""Krippendorff's alpha against published numbers and against its definition by pairs."""

import itertools

import numpy as np
import pytest

from tasks.reader_study.agreement import alpha, counted

# Four observers of twelve units, 0 for no answer. Source: Krippendorff, Computing Krippendorff's Alpha-Reliability,
# University of Pennsylvania, 2011, section D.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
        [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
    ]
)


def given(table: np.ndarray) -> list[list[int]]:
    return [[int(value) for value in column if value] for column in table.T]


def by_pairs(answers: list[list[int]], categories: int) -> float:
    """The definition: mean squared rank distance of pairs of one picture over that of all pairs."""
    answers = [one for one in answers if len(one) > 1]
    everything = [value for one in answers for value in one]
    n = [everything.count(value) for value in range(categories + 1)]

    def distance(a: int, b: int) -> float:
        a, b = min(a, b), max(a, b)
        return (sum(n[a : b + 1]) - (n[a] + n[b]) / 2) ** 2

    observed = sum(distance(a, b) / (len(one) - 1) for one in answers for a, b in itertools.permutations(one, 2))
    expected = sum(distance(a, b) for a, b in itertools.permutations(everything, 2)) / (len(everything) - 1)
    return 1 - observed / expected


def test_the_published_example() -> None:
    assert alpha(counted(given(OBSERVERS), 5))[0] == pytest.approx(0.815, abs=5e-4)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(1, 6, (int(rng.integers(2, 6)), 25))
    table[rng.random(table.shape) < 0.15] = 0
    answers = given(table)
    assert alpha(counted(answers, 5))[0] == pytest.approx(by_pairs(answers, 5), abs=1e-12)


def test_a_weight_is_as_many_copies_of_a_picture() -> None:
    answers = given(np.random.default_rng(3).integers(1, 6, (3, 6)))
    weights = np.array([[2.0, 0, 1, 3, 1, 1]])
    copies = [one for one, weight in zip(answers, weights[0], strict=True) for _ in range(int(weight))]
    assert alpha(counted(answers, 5), weights)[0] == pytest.approx(by_pairs(copies, 5), abs=1e-12)


def test_always_and_never_and_nothing_to_agree_on() -> None:
    same, other = [[k, k] for k in (1, 2, 3, 4, 5)], [[k, 6 - k] for k in (1, 2, 4, 5)]
    assert alpha(counted(same, 5))[0] == 1
    assert alpha(counted(other, 5))[0] < -0.5
    assert np.isnan(alpha(counted([[3, 3], [3, 3]], 5))[0])
