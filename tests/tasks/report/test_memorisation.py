"""The page of the memorisation experiment says what its numbers allow, and no more."""

import pytest

from tasks.report import memorisation_page
from tasks.report.ablation import Interval
from tasks.report.memorisation import LESSONS, Copies, Draw, Memorisation, Row, Share, findings, markdown, rows

NONE = Interval()
POSITIVE = Interval(value=0.19, low=0.13, high=0.26)
NOTHING = Interval(value=0.03, low=-0.11, high=0.15)
NEGATIVE = Interval(value=-0.2, low=-0.3, high=-0.1)


def experiment(**gaps: Interval) -> Memorisation:
    """With these gaps by lesson, blanks as underscores; that of the generator's own scans is positive, others none."""
    found = {lesson: gaps.get(lesson.replace(" ", "_"), NOTHING) for lesson in LESSONS}
    found["its own scans"] = gaps.get("its_own_scans", POSITIVE)
    auc = Interval(value=0.8, low=0.7, high=0.9)
    share = Share(found=2, of=40, low=0.014, high=0.165)
    return Memorisation(
        recipe="toy",
        recipe_digest="0" * 64,
        base="embedded",
        share=0.2,
        labels=("benign", "malignant"),
        network="ResNet-18",
        params={"steps": 3},
        draws=[Draw(seed=0, taught=64, alike=3, planned=40, kept=30)],
        rows=[
            Row(
                lesson=lesson,
                images={"benign": 20, "malignant": 20},
                seen=auc,
                unseen=auc,
                gap=gap,
                n_seen=52,
                n_unseen=204,
                groups_seen=50,
                groups_unseen=200,
                trainings=3,
                above=2,
                note="" if gap.value is not None else "fewer than two labels to learn from",
            )
            for lesson, gap in found.items()
        ],
        copies=Copies(samples=share, kept=share, unseen=share),
    )


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (POSITIVE, "memorisation shows"),
        (NOTHING, "no memorisation is shown, nor one ruled out up to its upper end"),
        (NEGATIVE, "nothing speaks for memorisation"),
        (NONE, "no number (fewer than two labels to learn from)"),
    ],
)
def test_a_gap_is_said_with_what_its_interval_allows(gap: Interval, words: str) -> None:
    kept, others = findings(experiment(kept_samples=gap))[:2]
    assert kept.startswith("Trained on kept samples")
    assert words in kept
    assert "nor one ruled out" in others


def test_controls_that_fail_are_said() -> None:
    assert not any("control fails" in sentence for sentence in findings(experiment()))
    for blind in (NOTHING, NONE):
        assert any("positive control fails" in sentence for sentence in findings(experiment(its_own_scans=blind)))
    for easier in (POSITIVE, NEGATIVE):
        assert any("negative control fails" in sentence for sentence in findings(experiment(other_scans=easier)))


def test_every_number_is_in_the_table_with_its_count() -> None:
    found = experiment()
    (kept, *_), page = rows(found), markdown(found)
    assert "+0.030 (-0.110 to 0.150)" in kept
    assert "52 (50 groups)" in kept
    assert "204 (200 groups)" in kept
    assert all(cell in page for line in rows(found) for cell in line)
    assert "less 3 that are frames of a sweep that taught" in page


def test_the_page_is_one_file_whose_chart_leaves_out_what_is_no_number() -> None:
    whole = memorisation_page.render(experiment())
    assert whole.count("<circle") == 2 * len(LESSONS)
    assert "http" not in whole.replace("http://www.w3.org", "")
    blank = [row.model_copy(update={"seen": NONE, "unseen": NONE}) for row in experiment().rows[:1]]
    assert "<circle" not in memorisation_page.chart(blank)
    assert "kept samples: none and none" in memorisation_page.chart(blank)
