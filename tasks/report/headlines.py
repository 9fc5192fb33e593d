"""What a reviewer should know before anything else, in sentences."""

from collections.abc import Collection, Mapping, Sequence

from storage.records import SetScore
from tasks.report.charts import number


def counted(planned: int, kept: int, rejected: Mapping[str, int], failed: int) -> str:
    """How the samples ended.

    >>> counted(10, 6, {"segmenter_dice": 2, "lesion_contrast": 1}, 1)
    '6 of 10 samples were kept (60 %); 3 were rejected, 2 of them first for segmenter_dice; 1 failed.'
    """
    text = f"{kept} of {planned} samples were kept ({100 * kept / (planned or 1):.0f} %)"
    refused = sum(rejected.values())
    if refused:
        worst, count = max(rejected.items(), key=lambda item: (item[1], item[0]))
        first = "all of them" if count == refused else f"{count} of them"
        text += f"; {refused} were rejected, {first} first for {worst}"
    else:
        text += "; none was rejected"
    return text + (f"; {failed} failed." if failed else "; none failed.")


def scored(scores: Sequence[SetScore], higher_is_better: Collection[str]) -> list[str]:
    """How far the set is from real images, and what could not be said."""
    sides: dict[bool, list[str]] = {False: [], True: []}
    for score in scores:
        if score.over_floor is not None and (score.p is None or score.value is None):
            sides[score.name in higher_is_better].append(
                f"{score.name} {number(score.over_floor)}{_span(score.over_floor_low, score.over_floor_high)}"
            )
    lines: list[str] = []
    if sides[False]:
        lines.append(f"Distance in multiples of what real images differ by from each other: {', '.join(sides[False])}.")
    if sides[True]:
        lines.append(f"Share of what real images reach against each other: {', '.join(sides[True])}.")
    lines += [_tested(score) for score in scores if score.p is not None and score.value is not None]
    refused = [score.name for score in scores if score.value is None]
    if refused:
        lines.append(f"No number: {', '.join(refused)}; the table below says why.")
    return lines


def copied(closest: float | None, limit: float | None) -> list[str]:
    """How near the kept samples come to a training image."""
    if closest is None:
        return []
    text = f"The kept sample nearest to a training image has a similarity of {number(closest)}"
    return [text + ("; no limit is set." if limit is None else f"; the limit is {number(limit)}.")]


def _tested(score: SetScore) -> str:
    """A score with a p-value, in a sentence of its own."""
    text = f"{score.name} is {number(score.value)}{_span(score.low, score.high)}, p = {score.p:.2g}"
    if score.floor is not None:
        text += f"; {number(score.floor)}{_span(score.floor_low, score.floor_high)} between real images"
    if score.control is not None:
        text += f"; {number(score.control)} with images damaged on purpose"
    return f"{text}."


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({number(low)} to {number(high)})"
