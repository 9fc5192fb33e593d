"""The page of the memorisation experiment: `memorisation.html`, one file that needs nothing else."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from tasks.report.ablation import Interval
from tasks.report.memorisation import COLUMNS, LESSONS, Memorisation, Row, findings, how_to_read, rows
from tasks.report.page import STYLE, environment, inline

_W, _ROW = 420, 44  # plot area and the height of one classifier
_LEFT, _BELOW = 110, 24
_SIDES = (("seen", "rejected", 14), ("unseen", "kept", 30))
"""Side, the class that colours it in the report's style, and where its dot stands in its row."""


def render(found: Memorisation) -> str:
    """The whole page."""
    return (
        environment()
        .get_template("memorisation.html.j2")
        .render(
            found=found,
            style=inline(STYLE),
            findings=findings(found),
            reading=how_to_read(found),
            chart=chart(found.rows),
            columns=COLUMNS,
            lines=rows(found),
            lessons=LESSONS,
        )
    )


def chart(found: Sequence[Row]) -> Markup:
    """AUC of every classifier on both sides with intervals, on one axis from the lowest end to 1."""
    ends = [
        end for row in found for side in (row.seen, row.unseen) for end in (side.low, side.value) if end is not None
    ]
    least = min([0.5, *ends])
    height = _ROW * len(found)

    def at(value: float) -> float:
        return (value - least) / (1 - least) * _W

    parts = [f'<line class="limit" x1="{at(0.5):.1f}" x2="{at(0.5):.1f}" y1="0" y2="{height}"/>']
    for number, row in enumerate(found):
        top = number * _ROW
        parts.append(f'<text x="-8" y="{top + 26}" text-anchor="end">{escape(row.lesson)}</text>')
        for side, color, down in _SIDES:
            shown: Interval = getattr(row, side)
            if shown.value is None:
                continue
            y = top + down
            if shown.low is not None and shown.high is not None:
                left, width = at(shown.low), at(shown.high) - at(shown.low)
                bar = f'x="{left:.1f}" y="{y - 2}" width="{width:.1f}" height="4"'
                parts.append(f'<rect class="{color}" opacity=".4" {bar}/>')
            parts.append(f'<circle class="{color}" cx="{at(shown.value):.1f}" cy="{y}" r="5"/>')
    ticks = [least, *(tick / 10 for tick in range(1, 11) if tick / 10 > least + 0.04)]
    for tick in ticks:
        parts.append(f'<text x="{at(tick):.1f}" y="{height + 16}" text-anchor="middle">{tick:.2g}</text>')
    told = "; ".join(f"{row.lesson}: {_auc(row.seen)} and {_auc(row.unseen)}" for row in found)
    words = f"AUC on the scans that taught the generator and on unseen ones. {told}"
    return Markup(
        f'<svg class="trend" viewBox="{-_LEFT} -2 {_W + _LEFT + 14} {height + _BELOW}" role="img" '
        f'aria-label="{escape(words)}">'
        f'<line class="axis" x1="0" x2="{_W}" y1="{height}" y2="{height}"/>{"".join(parts)}</svg>'
    )


def _auc(found: Interval) -> str:
    return "none" if found.value is None else f"{found.value:.3f}"
