"""What a change buys, on people nobody trained on: statistics of predictions with bootstrap intervals by group.

Two arms are compared on the same images, so their difference is resampled as a whole: the interval of a paired
difference is far narrower than two intervals side by side suggest.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.quality.detector import Detection
from tasks.quality.resampling import Rng, central_interval, group_weights
from tasks.quality.separability import weighted_area

Weights = NDArray[np.float64]
Statistic = Callable[[Weights], NDArray[np.float64]]
"""From how often each image counts, (resamples, images), to the statistic of each resample."""


def bootstrap(
    statistic: Statistic, groups: Sequence[str], resamples: int, rng: Rng, trainings: Sequence[str] | None = None
) -> tuple[float, float, float]:
    """The statistic with every image counted once, and its central 95 % interval over resampled groups.

    Where the `trainings` (one name an image) that answered are given, they are drawn as well, and an image counts as
    often as its group times its training: the interval then holds both the chance of who is tested and that of
    another training run, and is a little wide (Owen, The pigeonhole bootstrap, 2007). Resamples on which the
    statistic does not exist (NaN) are left out; where all are, the interval is NaN.
    """
    value = float(statistic(np.ones((1, len(groups))))[0])
    weights = group_weights(groups, resamples, rng)
    if trainings is not None and len(set(trainings)) > 1:
        weights *= group_weights(trainings, resamples, rng)
    drawn = statistic(weights)
    drawn = drawn[np.isfinite(drawn)]
    return (value, *central_interval(drawn)) if len(drawn) else (value, np.nan, np.nan)


def by_training(statistic: Statistic, trainings: Sequence[str]) -> NDArray[np.float64]:
    """The statistic of each training alone, in order of name; NaN where it does not exist."""
    names = np.unique(np.asarray(trainings))
    return statistic((names[:, None] == np.asarray(trainings)).astype(np.float64))


def difference(after: Statistic, before: Statistic) -> Statistic:
    """`after` minus `before` on the same resamples: paired."""
    return lambda weights: after(weights) - before(weights)


def mean(values: NDArray[np.float64]) -> Statistic:
    """Mean of one number an image."""
    return lambda weights: _ratio(weights @ values, weights.sum(1))


def median(values: NDArray[np.float64]) -> Statistic:
    """Median of one number an image: the smallest that at least half of the weight does not exceed."""
    order = np.argsort(values, kind="stable")

    def statistic(weights: Weights) -> NDArray[np.float64]:
        passed = np.cumsum(weights[:, order], axis=1)
        return values[order][(passed >= passed[:, -1:] / 2).argmax(1)]

    return statistic


def pooled_f1(hit: NDArray[np.float64], drawn: NDArray[np.float64], truth: NDArray[np.float64]) -> Statistic:
    """F1 of all pixels of all images together: 2 · hit / (drawn + truth), each in pixels an image."""
    return lambda weights: _ratio(2 * (weights @ hit), weights @ (drawn + truth))


def area(answers: NDArray[np.float64], positive: NDArray[np.bool_], model: NDArray[np.intp]) -> Statistic:
    """Area under the ROC curve among pairs that one and the same `model` (a number an image) judged."""
    ours = Detection(
        answers[~positive].astype(np.float32), answers[positive].astype(np.float32), model[~positive], model[positive]
    )
    return lambda weights: weighted_area(ours, weights[:, ~positive], weights[:, positive])


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
