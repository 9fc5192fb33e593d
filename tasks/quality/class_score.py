"""Inception score (Salimans et al., arXiv 1606.03498) by a classifier of the images at hand, not by ImageNet's.

High where each image is surely of one label and all labels occur: 1 to the number of labels. It says as little as its
classifier: ImageNet's labels mean nothing to an ultrasound image (Barratt and Sharma, arXiv 1801.01973), and a
classifier that does not know its labels on people it never saw is no better. So there is no number unless the
classifier is shown to be meaningful on the real images.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.evidence import ClassAnswers, SetEvidence
from tasks.quality.resampling import Rng, central_interval, comparisons, group_weights, grouped_margin, wilson

LEAST_AUC = 0.7
"""What the AUC on held-out real images must exceed, with its whole 95 % interval."""

_DRAWS = 50

Array = NDArray[np.float64]


def class_score(probabilities: Array) -> float:
    """exp of the mean divergence of each image's label probabilities (n, labels) from their mean: 1 to labels."""
    return float(np.exp(_divergence(probabilities).mean()))


def classifier_score(evidence: SetEvidence) -> SetScore:
    """How surely the classifier sees labels, and all of them, in the synthetic images (inception score); 1: not at all.

    The floor is that of real images at the same N. Refused where the classifier does not know held-out real images.
    """
    answers = evidence.answers
    score = SetScore(
        name="classifier_score",
        value=None,
        low=None,
        high=None,
        n_real=len(evidence.real),
        n_synthetic=len(evidence.synthetic),
        extractor=answers.classifier if answers else "none",
        note="refused: no classifier answered",
    )
    if answers is None:
        return score
    if len(set(answers.real_labels)) < 2:
        return score.model_copy(update={"note": "refused: the real images are of one label, there is nothing to tell"})
    rng = np.random.default_rng([evidence.seed, 15])
    low, auc = _least_auc(answers, evidence.real_groups, evidence.resamples, rng)
    known = f"its AUC on the {len(answers.real)} real images is {auc:.2f}, 95 % interval from {low:.2f}"
    if low <= LEAST_AUC:
        return score.model_copy(update={"note": f"refused: the classifier is not meaningful here: {known}"})
    drawn = comparisons(evidence.real_groups, evidence.synthetic_groups, _DRAWS, rng)
    if not drawn:
        return score.model_copy(update={"note": "refused: the real images are of one group or too few to be halved"})
    made, made_moves = _log_scores(answers.synthetic, [draw.made for draw in drawn])
    real, real_moves = _log_scores(answers.real, [draw.here for draw in drawn])
    sides = (made_moves, evidence.synthetic_groups), (-real_moves, evidence.real_groups)
    floor_low, floor_high = central_interval(np.exp(real))
    score = score.model_copy(
        update={
            "n_real": len(drawn[0].here),
            "n_synthetic": len(drawn[0].made),
            "floor": float(np.exp(real.mean())),
            "floor_low": floor_low,
            "floor_high": floor_high,
            "note": f"of at most {len(answers.labels)}; {known}",
        }
    )
    own = _with_interval("value", "low", "high", made.mean(), grouped_margin(sides[:1]))
    multiple = _with_interval(
        "over_floor", "over_floor_low", "over_floor_high", made.mean() - real.mean(), grouped_margin(sides)
    )
    return score.model_copy(update=own | multiple)


def _divergence(probabilities: Array) -> Array:
    """Kullback-Leibler divergence of every row from the mean of the rows, in nats."""
    from scipy.special import rel_entr

    return rel_entr(probabilities, probabilities.mean(axis=0)).sum(axis=1)


def _log_scores(probabilities: Array, draws: Sequence[NDArray[np.intp]]) -> tuple[Array, Array]:
    """The logarithm of the score of every draw, and what one more weight on each row does to their mean."""
    logs, moves = np.zeros(len(draws)), np.zeros(len(probabilities))
    for k, rows in enumerate(draws):
        divergence = _divergence(probabilities[rows])
        logs[k] = divergence.mean()
        # To first order the mean answer, from which all rows diverge, moves nothing.
        moves[rows] += (divergence - logs[k]) / (len(rows) * len(draws))
    return logs, moves


def _with_interval(name: str, low: str, high: str, log: float, margin: float | None) -> dict[str, float | None]:
    """What a logarithm and its margin say of the number itself."""
    ends = (None, None) if margin is None else (float(np.exp(log - margin)), float(np.exp(log + margin)))
    return {name: float(np.exp(log)), low: ends[0], high: ends[1]}


def _least_auc(answers: ClassAnswers, groups: Sequence[str], resamples: int, rng: Rng) -> tuple[float, float]:
    """Lower end of the 95 % interval of the mean one-against-rest AUC on the real images, and the AUC itself.

    The bootstrap's, but no higher than Wilson's with one trial for every group of the rarest label: few patients who
    are all told apart look the same in every resample.
    """
    weights = np.concatenate([np.ones((1, len(answers.real))), group_weights(groups, resamples, rng)])
    names, areas = np.asarray(answers.real_labels), list[Array]()
    for k, label in enumerate(answers.labels):
        own = names == label
        if not own.any() or own.all():
            continue
        ahead = 0.5 + 0.5 * np.sign(answers.real[own, k][:, None] - answers.real[~own, k])
        won = np.einsum("ri,ij,rj->r", weights[:, own], ahead, weights[:, ~own], optimize=True)
        pairs = weights[:, own].sum(axis=1) * weights[:, ~own].sum(axis=1)
        areas.append(np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))
    auc = np.mean(areas, axis=0)
    fewest = min(len({g for g, name in zip(groups, names, strict=True) if name == label}) for label in set(names))
    low = min(central_interval(auc[np.isfinite(auc)])[0], wilson(round(float(auc[0]) * fewest), fewest)[0])
    return low, float(auc[0])
