"""Small charts as inline SVG, coloured by the page's own CSS classes so that they follow light and dark."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from storage.records import SetScore
from tasks.report.summary import BINS, Bins

_W, _H = 320, 120  # histogram's plot area; its text lies below
_SPAN_W, _SPAN_H = 160, 24
_NUMBERED = 21  # versions that fit below a trend, each with its number


def number(value: float | None) -> str:
    """Three significant digits, a dash for none.

    >>> number(0.12345), number(2345.6), number(None)
    ('0.123', '2346', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def histogram(name: str, bins: Bins, least: float | None, most: float | None) -> Markup:
    """Kept and rejected samples by score, stacked, with the thresholds as dashed lines."""
    if not any(bins.kept) and not any(bins.rejected):
        return Markup('<p class="quiet">no sample has this score</p>')
    low, high = bins.low, bins.high
    counts = (bins.kept, bins.rejected)
    tallest = max(map(sum, zip(*counts, strict=True)))
    step = _W / BINS
    bars: list[str] = []
    for index in range(BINS):
        base = float(_H)
        for count, kind in zip((counts[0][index], counts[1][index]), ("kept", "rejected"), strict=True):
            if count:
                height = _H * count / tallest
                base -= height
                bars.append(
                    f'<rect class="{kind}" x="{index * step + 0.5:.2f}" y="{base:.2f}" '
                    f'width="{step - 1:.2f}" height="{height:.2f}"/>'
                )
    for limit in (least, most):
        if limit is None:
            continue
        x = (limit - low) / (high - low) * _W
        bars.append(f'<line class="limit" x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="{_H}"/>')
    words = f"{name}: {sum(bins.kept)} kept, {sum(bins.rejected)} rejected, from {number(low)} to {number(high)}"
    return Markup(
        f'<svg class="histogram" viewBox="-1 -2 {_W + 2} {_H + 20}" role="img" aria-label="{escape(words)}">'
        f'{"".join(bars)}<line class="axis" x1="0" x2="{_W}" y1="{_H}" y2="{_H}"/>'
        f'<text x="0" y="{_H + 15}">{number(low)}</text>'
        f'<text x="{_W}" y="{_H + 15}" text-anchor="end">{number(high)}</text></svg>'
    )


def interval(score: SetScore) -> Markup:
    """A score and its interval against the band of its real-against-real floor, on one axis from zero."""
    if score.value is None:
        return Markup('<span class="quiet">not a number here</span>')
    present = _values(score)
    low, high = min(0.0, *present), max(0.0, *present)
    scale = (_SPAN_W - 8) / ((high - low) or 1.0)

    def at(value: float) -> float:
        return 4 + (value - low) * scale

    middle = _SPAN_H / 2
    parts = [f'<line class="axis" x1="4" x2="{_SPAN_W - 4}" y1="{middle}" y2="{middle}"/>']
    if score.floor_low is not None and score.floor_high is not None:
        left, width = at(score.floor_low), max(2.0, (score.floor_high - score.floor_low) * scale)
        parts.append(f'<rect class="floor" x="{left:.2f}" y="3" width="{width:.2f}" height="{_SPAN_H - 6}"/>')
    elif score.floor is not None:
        parts.append(f'<rect class="floor" x="{at(score.floor) - 1:.2f}" y="3" width="2" height="{_SPAN_H - 6}"/>')
    if score.low is not None and score.high is not None:
        ends = f'x1="{at(score.low):.2f}" x2="{at(score.high):.2f}"'
        parts.append(f'<line class="span" {ends} y1="{middle}" y2="{middle}"/>')
    parts.append(f'<circle class="value" cx="{at(score.value):.2f}" cy="{middle}" r="4"/>')
    words = f"{score.name} {number(score.value)}, floor {number(score.floor)}"
    return Markup(
        f'<svg class="span-chart" viewBox="0 0 {_SPAN_W} {_SPAN_H}" width="{_SPAN_W}" height="{_SPAN_H}" '
        f'role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
    )


def trend(name: str, versions: Sequence[tuple[str, SetScore | None]], *, described: bool = False) -> Markup:
    """One score over versions, oldest first: value and interval, the floor as a band behind it.

    The line is broken where a version has no value, or another extractor than the one before: those do not compare.
    At least one must have a value. Of more than 21 versions not all are numbered.

    Args:
        name: of the score.
        versions: what to write below each, and its score.
        described: for readers by ear and by mouse, a title, a description and a title for each value, not a label.
    """
    scores = [score for _, score in versions if score is not None]
    present = [value for score in scores for value in _values(score)]
    low, high = min(0.0, *present), max(0.0, *present)
    step = _W / len(versions)
    dense = len(versions) > _NUMBERED
    radius = min(4.0, 0.4 * step) if dense else 4
    numbered = -(-len(versions) // (_NUMBERED // 2)) if dense else 1
    before: tuple[float, float, str] | None = None

    def at(value: float) -> float:
        return _H - (value - low) / ((high - low) or 1.0) * (_H - 8)

    parts: list[str] = [f'<line class="axis" x1="0" x2="{_W}" y1="{at(0):.2f}" y2="{at(0):.2f}"/>']
    for index, (version, score) in enumerate(versions):
        x = (index + 0.5) * step
        if (len(versions) - 1 - index) % numbered == 0:
            parts.append(f'<text x="{x:.2f}" y="{_H + 15}" text-anchor="middle">{escape(version)}</text>')
        if score is None or score.value is None:
            before = None
            continue
        if score.floor_low is not None and score.floor_high is not None:
            top, height = at(score.floor_high), max(2.0, at(score.floor_low) - at(score.floor_high))
            parts.append(
                f'<rect class="floor" x="{x - step * 0.3:.2f}" y="{top:.2f}" width="{step * 0.6:.2f}" '
                f'height="{height:.2f}"/>'
            )
        y = at(score.value)
        if before is not None and before[2] == score.extractor:
            parts.append(f'<line class="path" x1="{before[0]:.2f}" y1="{before[1]:.2f}" x2="{x:.2f}" y2="{y:.2f}"/>')
        if score.low is not None and score.high is not None:
            ends = f'y1="{at(score.low):.2f}" y2="{at(score.high):.2f}"'
            parts.append(f'<line class="span" x1="{x:.2f}" x2="{x:.2f}" {ends}/>')
        dot = f'class="value" cx="{x:.2f}" cy="{y:.2f}" r="{radius:.3g}"'
        told = f"<circle {dot}><title>{escape(f'{version}: {_told(score)}')}</title></circle>"
        parts.append(told if described else f"<circle {dot}/>")
        before = x, y, score.extractor
    words = ", ".join(f"{version} {number(score.value if score else None)}" for version, score in versions)
    label = "" if described else f' aria-label="{escape(f"{name}: {words}")}"'
    if described:
        parts.insert(0, f"<title>{escape(name)} over versions</title><desc>{escape(words)}</desc>")
    return Markup(
        f'<svg class="trend{" dense" * dense}" viewBox="-46 -2 {_W + 48 + 12 * dense} {_H + 20}" role="img"{label}>'
        f'{"".join(parts)}<text x="-4" y="{at(high) + 4:.2f}" text-anchor="end">{number(high)}</text>'
        f'<text x="-4" y="{at(low) + 4:.2f}" text-anchor="end">{number(low)}</text></svg>'
    )


def bar(counts: Mapping[str, int]) -> Markup:
    """How a whole divides, as one bar."""
    whole, left, parts = sum(counts.values()) or 1, 0.0, ""
    for name, count in counts.items():
        width = 100 * count / whole
        parts += f'<rect class="{escape(name)}" x="{left:.2f}%" width="{width:.2f}%" height="100%"/>' if count else ""
        left += width
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    return Markup(f'<svg class="bar" width="100%" height="12" role="img" aria-label="{escape(words)}">{parts}</svg>')


def _values(score: SetScore) -> list[float]:
    """All that a chart of it must hold."""
    known = [score.value, score.low, score.high, score.floor, score.floor_low, score.floor_high]
    return [value for value in known if value is not None]


def _told(score: SetScore) -> str:
    """A score in words, where it is a number.

    >>> _told(SetScore(name="kid", value=0.1, low=0, high=0.2, floor=0.05, n_real=9, n_synthetic=8, extractor="x"))
    '0.1 (0 to 0.2), floor 0.05'
    """
    span = "" if score.low is None or score.high is None else f" ({number(score.low)} to {number(score.high)})"
    return f"{number(score.value)}{span}, floor {number(score.floor)}"
