import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.plan import GOLDEN, Plan, planned
from tasks.synthesis import attributes, shape
from tasks.synthesis.attributes import by_share, words
from tasks.synthesis.diffusion.vocabulary import WORDS
from tests.fakes.drafts import ellipse

MARGINS = shape.Margins(0.02, 0.04)


def waved(px: int, amplitude: float) -> np.ndarray:
    rows, columns = np.mgrid[:px, :px] - px / 2
    return np.hypot(rows, columns) <= px / 4 * (1 + amplitude * np.sin(12 * np.arctan2(rows, columns)))


def test_words_say_what_a_mask_shows_in_the_order_asked_for() -> None:
    flat = ellipse(128, 64, 64, 15, 30)
    assert words(["margin", "orientation"], flat, None, MARGINS) == ("smooth margin", "parallel")
    assert words(["orientation", "margin"], flat.T, None, MARGINS) == ("taller than wide", "smooth margin")
    assert words(["margin"], waved(256, 0.12), None, MARGINS) == ("spiculated margin",)
    assert words([], flat, None, MARGINS) == ()


def test_a_head_has_a_trimester_where_its_pixel_size_is_known() -> None:
    head = ellipse(128, 64, 64, 30, 40)  # circumference 221 px
    assert words(["trimester"], head, None, MARGINS) == ()
    assert words(["trimester"], head, 0.3, MARGINS) == ("first trimester",)
    assert words(["trimester"], head, 0.8, MARGINS) == ("second trimester",)
    assert words(["trimester"], head, 1.3, MARGINS) == ("third trimester",)


def test_nothing_is_said_of_a_blank_mask() -> None:
    assert words(["margin", "orientation", "trimester"], np.zeros((64, 64), np.bool_), 0.3, MARGINS) == ()
    assert words(["margin"], None, None, MARGINS) == ()


def test_every_word_is_one_that_the_embedded_base_knows() -> None:
    masks = [ellipse(128, 64, 64, 15, 30), ellipse(128, 64, 64, 30, 15), waved(256, 0.04), waved(256, 0.12)]
    said = {
        word
        for mask in masks
        for text in words(["margin", "orientation"], mask, None, MARGINS)
        for word in text.split()
    }
    said |= {*attributes.TRIMESTERS, "trimester"}
    assert {"smooth", "irregular", "spiculated", "parallel", "taller"} < said
    assert said <= set(WORDS)


@pytest.mark.parametrize(("weeks", "head_mm"), [(14, 97.3), (20, 175), (28, 262), (36, 325)])
def test_gestational_age_follows_hadlocks_table(weeks: int, head_mm: float) -> None:
    # Hadlock 1984, table of predicted menstrual age by head circumference, read to a week
    assert attributes.gestational_weeks(head_mm) == pytest.approx(weeks, abs=1)


def test_the_same_margins_are_learned_whatever_masks_are_cut_off_by_the_picture() -> None:
    whole = [("benign", ellipse(96, 48, 48, 10 + number % 5, 20)) for number in range(14)]
    cut = [("benign", ellipse(96, 48, 2, 20, 20))]
    assert attributes.margins_of([*whole, *cut]) == attributes.margins_of(whole)


@given(
    shares=st.lists(st.floats(0.1, 1), min_size=1, max_size=4),
    inner=st.lists(st.floats(0.1, 1), min_size=2, max_size=3),
    count=st.integers(1, 400),
)
def test_quotas_within_a_label_are_kept_by_any_prefix_of_the_plan(
    shares: list[float], inner: list[float], count: int
) -> None:
    plan = Plan(samples=count, labels={f"label {number}": share for number, share in enumerate(shares)})
    names = {f"name {number}": share for number, share in enumerate(inner)}
    found: dict[tuple[str, str], int] = {}
    for sample in planned(plan, 0, range(count)):
        assert 0 <= sample.point <= 1
        chosen = (sample.label, by_share(names, sample.point)[0])
        found[chosen] = found.get(chosen, 0) + 1
    for label, share in plan.labels.items():
        for name, own in names.items():
            expected = count * share / sum(shares) * own / sum(inner)
            assert abs(found.get((label, name), 0) - expected) < 4


def test_a_quota_read_inside_another_does_not_depend_on_it() -> None:
    points = [(index + 0.5) * GOLDEN % 1.0 for index in range(1000)]
    pairs = [
        (first, by_share({"x": 0.3, "y": 0.7}, rest)[0])
        for first, rest in (by_share({"a": 1, "b": 2}, p) for p in points)
    ]
    for first, expected in (("a", 333), ("b", 667)):
        own = [second for name, second in pairs if name == first]
        assert len(own) == pytest.approx(expected, abs=3)
        assert own.count("x") / len(own) == pytest.approx(0.3, abs=0.01)
