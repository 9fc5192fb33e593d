"""The page of a utility study: `study.html`, one file that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.report import curves
from tasks.report.page import environment
from tasks.report.study import (
    Estimate,
    Study,
    about_folds,
    about_synthetic,
    claims,
    findings,
    grid,
    how_to_read,
    leakage,
    notes,
)

COLORS = 7


@dataclass(frozen=True)
class Panel:
    """What is shown of one measure and who was tested: the arms' curves, their gains, the numbers."""

    title: str
    arms: Markup | None
    gains: Markup | None
    columns: list[str]
    lines: list[list[str]]


def render(study: Study) -> str:
    """The whole page."""
    colors = _colors(study)
    return (
        environment()
        .get_template("study.html.j2")
        .render(
            study=study,
            reading=how_to_read(study),
            findings=findings(study),
            legend=colors,
            panels=[_panel(title, found, colors) for title, found in study.curves().items()],
            others=about_synthetic(study),
            folds=about_folds(study),
            leakage=leakage(study),
            notes=notes(study),
            claims=claims(study),
        )
    )


def _colors(study: Study) -> dict[str, int]:
    """Number of each arm in the page's palette, the same in all charts."""
    arms = dict.fromkeys(e.arm for found in study.curves().values() for e in found)
    return {arm: at % COLORS for at, arm in enumerate(arms)}


def _panel(title: tuple[str, str], found: Sequence[Estimate], colors: dict[str, int]) -> Panel:
    measure, tested = title
    name = f"{measure}, {tested}"
    columns, lines = grid(found)
    absolute = [estimate for estimate in found if estimate.over is None]
    gained = [estimate for estimate in found if estimate.over is not None]
    return Panel(
        title=name,
        arms=_chart(name, measure, absolute, colors),
        gains=_gains(name, gained, colors) if gained else None,
        columns=columns,
        lines=lines,
    )


def _gains(name: str, found: Sequence[Estimate], colors: dict[str, int]) -> Markup | None:
    unit = "difference" if found[0].less_is_better else "gain"
    return _chart(f"{name}: {unit} over {found[0].over}", unit, found, colors)


def _chart(title: str, unit: str, found: Sequence[Estimate], colors: dict[str, int]) -> Markup | None:
    arms = [
        curves.Curve(
            name=arm,
            color=color,
            points=[
                curves.Point(e.real_images or 0, e.value, e.low, e.high)
                for e in found
                if e.arm == arm and e.value is not None
            ],
            level=any(e.arm == arm and not e.regime for e in found),
        )
        for arm, color in colors.items()
    ]
    drawn = [arm for arm in arms if arm.points]
    return curves.draw(title, unit, drawn) if drawn else None
