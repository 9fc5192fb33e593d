"""What downstream networks are measured by: statistics of the tables in which a study keeps their answers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.quality import gain

CLASSIFICATION = "classification"


@dataclass(frozen=True)
class Measure:
    """One number of a table of answers. Rows in which one of `columns` is null do not count."""

    name: str
    statistic: Callable[[pd.DataFrame], gain.Statistic]
    columns: tuple[str, ...]
    less_is_better: bool = False


def dice(rows: pd.DataFrame) -> gain.Statistic:
    """Mean Dice of `hit`, `drawn` and `truth`, in pixels an image: 0 where nothing was drawn."""
    hit, drawn, truth = (_numbers(rows, name) for name in ("hit", "drawn", "truth"))
    return gain.mean(2 * hit / np.maximum(drawn + truth, 1))


def pixel_f1(rows: pd.DataFrame) -> gain.Statistic:
    """F1 of all pixels of all images together, of the same columns."""
    return gain.pooled_f1(*(_numbers(rows, name) for name in ("hit", "drawn", "truth")))


def circumference_error(rows: pd.DataFrame) -> gain.Statistic:
    """Mean absolute difference of the head circumferences `drawn_mm` and `truth_mm`; 0 mm where nothing was drawn."""
    return gain.mean(np.abs(_numbers(rows, "drawn_mm") - _numbers(rows, "truth_mm")))


def area(rows: pd.DataFrame) -> gain.Statistic:
    """Area under the ROC curve of `probability` for `positive`, among answers of one training."""
    model = (1000 * rows["fold"] + rows["seed"]).to_numpy(np.intp)
    return gain.area(_numbers(rows, "probability"), rows["positive"].to_numpy(np.bool_), model)


AREAS = ("hit", "drawn", "truth")
OUTLINED = (
    Measure("mean Dice", dice, AREAS),
    Measure("pixel F1", pixel_f1, AREAS),
    Measure("head circumference error, mm", circumference_error, ("drawn_mm", "truth_mm"), less_is_better=True),
)
ANSWERED = (Measure("AUC", area, ("probability", "positive")),)


def measures_of(task: str, table: pd.DataFrame) -> list[Measure]:
    """What is measured of a task, whose answers are `table`: its first measure, and what else applies to some row."""
    first, *others = ANSWERED if task == CLASSIFICATION else OUTLINED
    return [first, *(one for one in others if len(complete(one, table)))]


def complete(measure: Measure, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that the measure applies to."""
    if not set(measure.columns) <= set(rows.columns):
        return rows.iloc[:0]
    return rows.dropna(subset=list(measure.columns))


def _numbers(rows: pd.DataFrame, column: str) -> NDArray[np.float64]:
    return rows[column].to_numpy(np.float64)
