"""Small charts as inline SVG, coloured by the page's own CSS classes so that they follow light and dark."""

import math
from collections.abc import Mapping

from markupsafe import Markup, escape

from storage.records import SetScore
from tasks.report.summary import BINS, Bins

_W, _H = 320, 120  # histogram's plot area; its text lies below
_SPAN_W, _SPAN_H = 160, 24


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
    known = [score.value, score.low, score.high, score.floor, score.floor_low, score.floor_high]
    present = [value for value in known if value is not None]
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


def shares(counts: Mapping[str, int]) -> list[tuple[str, int, str]]:
    """Name, count and share of the whole as a CSS percentage.

    >>> shares({"kept": 3, "failed": 1})
    [('kept', 3, '75.00%'), ('failed', 1, '25.00%')]
    """
    whole = sum(counts.values()) or 1
    return [(name, count, f"{100 * count / whole:.2f}%") for name, count in counts.items()]
