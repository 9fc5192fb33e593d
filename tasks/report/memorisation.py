"""What the memorisation experiment found: its numbers as records, the sentences and the table that people read."""

from collections.abc import Sequence
from typing import Literal

from storage.records import Record
from tasks.report.ablation import Interval

Lesson = Literal["kept samples", "all samples", "its own scans", "other scans"]
MADE: tuple[Lesson, ...] = ("kept samples", "all samples")
LESSONS: dict[Lesson, str] = {
    "kept samples": "the samples that curation kept",
    "all samples": "all samples that were made: curation can hide memorisation, or cause it",
    "its own scans": "the scans that taught the generator: what full memorisation looks like",
    "other scans": "as many scans that the generator never saw: what no memorisation looks like",
}
"""What a classifier may learn from, and what its row tells. The last two are the controls."""


class Share(Record):
    """`found` of `of` images, with the 95 % Wilson interval of the share."""

    found: int
    of: int
    low: float
    high: float


class Copies(Record):
    """Samples too much like a lesion scan that taught the generator, those kept among them, and unseen scans that are
    so by the same limits."""

    samples: Share
    kept: Share
    unseen: Share


class Draw(Record):
    """One draw of the groups by its seed: scans that taught, lesions left out because they are frames of a sweep that
    taught, samples planned and kept."""

    seed: int
    taught: int
    alike: int
    planned: int
    kept: int


class Row(Record):
    """One classifier, trained several times: its AUC on the scans that taught the generator, on unseen ones, and the
    gap, the first less the second, with how many `trainings` there were and in how many the gap was `above` zero.

    `images` were learned from, by label, on average over trainings. Where there is no number, `note` says why.
    """

    lesson: Lesson
    images: dict[str, float]
    seen: Interval = Interval()
    unseen: Interval = Interval()
    gap: Interval = Interval()
    n_seen: int = 0
    n_unseen: int = 0
    groups_seen: int = 0
    groups_unseen: int = 0
    trainings: int = 0
    above: int = 0
    note: str = ""


class Memorisation(Record):
    """The experiment on one recipe: `share` of the training scans, whole groups, taught the generator. `labels` are
    told apart; an AUC is of the second."""

    recipe: str
    recipe_digest: str
    base: str
    share: float
    labels: tuple[str, str]
    network: str
    params: dict[str, object]
    draws: list[Draw]
    rows: list[Row]
    copies: Copies


COLUMNS = ("learned from", "images", "AUC, taught", "AUC, unseen", "gap", "gap > 0", "N, taught", "N, unseen")
"""Taught: the scans that taught the generator."""


def rows(found: Memorisation) -> list[tuple[str, ...]]:
    """The classifiers as text, in `COLUMNS`."""
    return [
        (
            row.lesson,
            " + ".join(f"{count:g} {label}" for label, count in row.images.items()) or "none",
            _span(row.seen),
            _span(row.unseen),
            _span(row.gap, signed=True),
            f"{row.above} of {row.trainings}" if row.trainings else row.note,
            f"{row.n_seen} ({row.groups_seen} groups)",
            f"{row.n_unseen} ({row.groups_unseen} groups)",
        )
        for row in found.rows
    ]


def markdown(found: Memorisation) -> str:
    """The page of the experiment."""
    lines: list[Sequence[str]] = [COLUMNS, ["---"] * len(COLUMNS), *rows(found)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join(
        [
            f"# Does {found.recipe} give its training scans away?",
            "",
            *(f"- {sentence}" for sentence in findings(found)),
            "",
            how_to_read(found),
            "",
            table,
            "",
            *(f"- {lesson}: {told}" for lesson, told in LESSONS.items()),
            "",
        ]
    )


def findings(found: Memorisation) -> list[str]:
    """What the gaps say, and whether the controls let them say anything; then the copies."""
    by_lesson = {row.lesson: row for row in found.rows}
    sentences = [_said(by_lesson[lesson]) for lesson in MADE if lesson in by_lesson]
    own, other = by_lesson["its own scans"].gap, by_lesson["other scans"].gap
    if _above(own):
        sentences.append(f"A classifier that learned those scans themselves has a gap of {_span(own, signed=True)}.")
    else:
        sentences.append(
            f"The positive control fails: of a classifier that learned those scans themselves the gap is "
            f"{_span(own, signed=True)}, and its interval holds zero or there is none. A small gap proves nothing here."
        )
    if _above(other) or (other.high is not None and other.high < 0):
        sentences.append(
            "The negative control fails: of a classifier that saw neither side the gap is "
            f"{_span(other, signed=True)}. One side is easier than the other, and other gaps are shifted by that."
        )
    else:
        sentences.append(f"A classifier that saw neither side has a gap of {_span(other, signed=True)}.")
    copied, unseen = found.copies.samples, found.copies.unseen
    sentences.append(
        f"{_share(copied)} samples resemble a scan that taught the generator too much, {_share(found.copies.kept)} of "
        f"those kept; of unseen scans {_share(unseen)} do by chance."
    )
    return sentences


def how_to_read(found: Memorisation) -> str:
    """What the numbers are about, in words."""
    taught = " and ".join(f"{draw.taught}" for draw in found.draws)
    alike = sum(draw.alike for draw in found.draws)
    chance = (
        "groups and draws, whose trainings share a generator."
        if len(found.draws) > 1
        else "groups and trainings of the classifier. One draw of the groups and one training of the generator stand "
        "behind all rows: the intervals do not hold the chance of those."
    )
    return (
        f"The generator, its judges and its curation learned from {100 * found.share:.0f} % of the training scans, in "
        f"whole groups: {taught} scans. A classifier ({found.network}) learned {found.labels[0]} from "
        f"{found.labels[1]} on what each row names, and was asked about the lesions that taught the generator and "
        "about unseen ones: the training groups left out, which no part of the build read, less "
        f"{alike} that are frames of a sweep that taught. Validation scans are on neither side, because they chose "
        "checkpoints and limits. What the samples teach of the disease serves on both sides alike; what they repeat of "
        "the scans they came from serves on one: "
        f"the gap is memorisation. Intervals: 95 %, bootstrap over {chance}"
    )


def _said(row: Row) -> str:
    gap = row.gap
    if gap.value is None:
        return f"Trained on {row.lesson}: no number ({row.note})."
    where = (
        f"on the scans that taught the generator {_number(row.seen.value)}, on unseen ones {_number(row.unseen.value)}"
    )
    if _above(gap):
        told = "memorisation shows"
    elif gap.high is not None and gap.high < 0:
        told = "it knows unseen scans better, so nothing speaks for memorisation"
    else:
        told = "the interval holds zero, so no memorisation is shown, nor one ruled out up to its upper end"
    return f"Trained on {row.lesson}, AUC {where}: gap {_span(gap, signed=True)}; {told}."


def _above(found: Interval) -> bool:
    return found.low is not None and found.low > 0


def _span(found: Interval, signed: bool = False) -> str:
    if found.value is None:
        return "none"
    inside = "" if found.low is None or found.high is None else f" ({found.low:.3f} to {found.high:.3f})"
    return f"{found.value:{'+' if signed else ''}.3f}{inside}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _share(share: Share) -> str:
    return f"{share.found} of {share.of} ({100 * share.low:.1f} to {100 * share.high:.1f} %)"
