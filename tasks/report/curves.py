"""Curves over the number of real images, with interval bands, as inline SVG; the page's CSS colours them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

_W, _H = 460, 250  # plot area; scales stand left of it and below
_LEFT, _TOP, _RIGHT, _BELOW = 48, 10, 14, 40
_Scale = Callable[[float], float]


@dataclass(frozen=True)
class Point:
    """A value with its interval at a number of real images."""

    x: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """One arm. `color` is its number in the page's palette; without `points` along x it is a `level` line."""

    name: str
    color: int
    points: Sequence[Point]
    level: bool = False


def draw(title: str, unit: str, curves: Sequence[Curve]) -> Markup:
    """The chart of one measure. x is logarithmic; a dashed line marks zero where values lie on both sides of it.

    Raises:
        ValueError: there is no point to draw.
    """
    points = [point for curve in curves for point in curve.points]
    if not points:
        raise ValueError(f"no number to draw in {title!r}")
    xs = sorted({point.x for curve in curves if not curve.level for point in curve.points}) or [1.0]
    ends = [end for p in points for end in (p.value, p.low, p.high) if end is not None]
    ticks = _ticks(min(ends), max(ends))

    def x_of(number: float) -> float:
        if xs[0] == xs[-1]:
            return _W / 2
        return _W * (0.04 + 0.92 * math.log(number / xs[0]) / math.log(xs[-1] / xs[0]))

    def y_of(value: float) -> float:
        return _H * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))

    parts = [_scales(xs, ticks, x_of, y_of)]
    if ticks[0] < 0 < ticks[-1]:
        parts.append(f'<line class="zero" x1="0" x2="{_W}" y1="{y_of(0):.1f}" y2="{y_of(0):.1f}"/>')
    for curve in curves:
        spots = [replace(p, x=x) for p in curve.points for x in (xs[0], xs[-1])] if curve.level else curve.points
        parts.append(_band(curve, spots, x_of, y_of))
        path = " ".join(f"{x_of(p.x):.1f},{y_of(p.value):.1f}" for p in spots)
        parts.append(f'<polyline class="line c{curve.color}{" level" if curve.level else ""}" points="{path}"/>')
        for p in [] if curve.level else curve.points:
            told = f"{curve.name}, {p.x:.0f} real images: {p.value:.3f}{_interval(p)}"
            parts.append(
                f'<circle class="dot c{curve.color}" cx="{x_of(p.x):.1f}" cy="{y_of(p.value):.1f}" r="4">'
                f"<title>{escape(told)}</title></circle>"
            )
    size = f"{-_LEFT} {-_TOP} {_W + _LEFT + _RIGHT} {_H + _TOP + _BELOW}"
    words = f"{title}: " + "; ".join(f"{c.name} {_told(c)}" for c in curves)
    return Markup(
        f'<svg class="curves" viewBox="{size}" role="img" aria-label="{escape(words)}">{"".join(parts)}'
        f'<text class="unit" x="{-_LEFT + 4}" y="{_H + 34}">{escape(unit)}</text>'
        f'<text x="{_W}" y="{_H + 34}" text-anchor="end">real images to train on</text></svg>'
    )


def _scales(xs: Sequence[float], ticks: Sequence[float], x_of: _Scale, y_of: _Scale) -> str:
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    lines = [
        f'<line class="axis" x1="0" x2="{_W}" y1="{y_of(t):.1f}" y2="{y_of(t):.1f}"/>'
        f'<text x="-8" y="{y_of(t) + 4:.1f}" text-anchor="end">{t:.{digits}f}</text>'
        for t in ticks
    ]
    lines += [f'<text x="{x_of(x):.1f}" y="{_H + 17}" text-anchor="middle">{x:.0f}</text>' for x in xs]
    return "".join(lines)


def _band(curve: Curve, spots: Sequence[Point], x_of: _Scale, y_of: _Scale) -> str:
    """The interval: an area between points, an upright line where there is one point alone."""
    known = [(p.x, p.low, p.high) for p in spots if p.low is not None and p.high is not None]
    if len(known) == 1:
        x, low, high = known[0]
        ends = f'x1="{x_of(x):.1f}" x2="{x_of(x):.1f}" y1="{y_of(low):.1f}" y2="{y_of(high):.1f}"'
        return f'<line class="span c{curve.color}" {ends}/>'
    above = [f"{x_of(x):.1f},{y_of(high):.1f}" for x, _, high in known]
    below = [f"{x_of(x):.1f},{y_of(low):.1f}" for x, low, _ in reversed(known)]
    return f'<polygon class="band c{curve.color}" points="{" ".join([*above, *below])}"/>' if known else ""


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, four to eight of them.

    >>> _ticks(0.41, 0.68)
    [0.4, 0.5, 0.6, 0.7]
    """
    wide = max(high - low, 1e-6)
    step = 10 ** math.floor(math.log10(wide))
    step = next(step * part for part in (1, 0.5, 0.2, 0.1) if wide / (step * part) >= 2.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _interval(point: Point) -> str:
    return "" if point.low is None or point.high is None else f" ({point.low:.3f} to {point.high:.3f})"


def _told(curve: Curve) -> str:
    return ", ".join(f"{point.value:.3f}" + ("" if curve.level else f" with {point.x:.0f}") for point in curve.points)
