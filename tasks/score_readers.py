"""Score readers: can they tell synthetic from real, do they agree, how long do they take?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit

from storage.records import Record
from tasks.quality.detector import Detection
from tasks.quality.resampling import central_interval, group_weights, wilson
from tasks.quality.separability import weighted_area
from tasks.reader_study import SCALE, UNSURE, Answers, Key, Truth
from tasks.reader_study.agreement import alpha, counted
from tasks.reader_study.answers import check, read_answers, read_key

RESAMPLES = 2000
KEY_GLOB = "*.key.json"

Array = NDArray[np.float64]


class Estimate(Record):
    """A number and its 95 % interval; `value` is None where there is nothing to say, `low` and `high` where there is
    no interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Share(Record):
    """`found` of `of`, and Wilson's 95 % interval of the rate behind it."""

    found: int
    of: int
    low: float
    high: float


class Reader(Record):
    """What one reader's first answers say. `accuracy` is of the answers that are not "unsure"; `same` and `alpha`
    compare the two answers to pictures that were shown twice."""

    reader: str
    experience: str
    file: str
    auc: Estimate
    accuracy: Share
    unsure: int
    median_s: float
    same: Share | None
    alpha: Estimate | None


class Picture(Record):
    """How the readers, in their order, answered one picture the first time."""

    id: str
    truth: Truth
    name: str
    label: str | None
    group: str
    answers: list[int]


class Scored(Record):
    """A reader study. `auc` is the mean over readers: its interval holds for these readers and other pictures,
    `auc_all_readers` has the one for other readers too. `alpha` is agreement between readers."""

    study: str
    dataset: str
    digest: str
    from_real: str
    real: int
    synthetic: int
    groups: int
    readers: list[Reader]
    auc: Estimate
    auc_all_readers: Estimate | None
    alpha: Estimate | None
    pictures: list[Picture]


def score(files: Sequence[Path], key: Path | None = None) -> Scored:
    """Score what readers saved.

    Args:
        files: one of each reader.
        key: written beside the page; looked for beside the files and here where left out.

    Raises:
        ValueError: a file holds no answers, was changed, is unfinished, answers another study or repeats a reader.
    """
    if not files:
        raise ValueError("no files to score: give those that the readers saved")
    read = [(str(file), read_answers(_text(file), str(file))) for file in files]
    found = read_key(_text(key), str(key)) if key is not None else _found(files, read[0][1].study)
    check(read, found)
    return scored(found, read)


def scored(key: Key, files: Sequence[tuple[str, Answers]]) -> Scored:
    """The same of answers that were checked, each with its file's name."""
    shown = sorted(key.pictures, key=lambda one: (one.truth, one.id))
    first = np.array([[_given(answers, 1)[one.id] for one in shown] for _, answers in files])
    real = sum(one.truth == "real" for one in shown)
    # One draw of whole groups for all readers: they looked at the same pictures.
    groups = [one.group for one in shown]
    weights = group_weights(groups, RESAMPLES, np.random.default_rng(0))
    fewest = min(len(set(groups[:real])), len(set(groups[real:])))
    areas, resampled = _areas(first, real, weights)
    readers = [
        _reader(file, answers, row, real, _around(area, draws, fewest), key)
        for (file, answers), row, area, draws in zip(files, first, areas.tolist(), resampled, strict=True)
    ]
    several = len(files) > 1
    return Scored(
        study=key.study(),
        dataset=key.dataset,
        digest=key.digest,
        from_real=key.real,
        real=real,
        synthetic=len(shown) - real,
        groups=len(set(groups)),
        readers=readers,
        auc=_around(float(areas.mean()), resampled.mean(axis=0), fewest),
        auc_all_readers=_of_all_readers(areas, resampled) if several else None,
        alpha=_agreement(first.T.tolist(), weights) if several else None,
        pictures=[
            Picture(**one.model_dump(), answers=column.tolist()) for one, column in zip(shown, first.T, strict=True)
        ],
    )


def findings(found: Scored) -> list[str]:
    """What the study says, in sentences."""
    area = found.auc_all_readers or found.auc
    assert found.auc.value is not None
    who = f"{len(found.readers)} readers tell" if len(found.readers) > 1 else "The reader tells"
    lines = [f"{who} {found.synthetic} synthetic from {found.real} real pictures with an AUC of {span(found.auc)}."]
    if found.auc_all_readers is not None:
        lines.append(f"For other readers like these, too, the interval is {span(area).split(' ', 1)[1]}.")
    if area.low is not None and area.high is not None:
        if area.low > 0.5:
            lines.append("The interval lies above 0.5: synthetic pictures can be told from real ones.")
        elif area.high < 0.5:
            lines.append("The interval lies below 0.5: synthetic pictures pass for more real than real ones do.")
        else:
            lines.append(f"The interval holds 0.5, so no difference was shown; it does not rule out {area.high:.2f}.")
    if found.alpha is not None and found.alpha.value is not None:
        lines.append(f"Readers agree with each other with an alpha of {span(found.alpha)}; 0 is chance, 1 always.")
    return lines


COLUMNS = (
    "reader",
    "AUC",
    "95 % interval",
    "right, of those sure",
    "95 % interval",
    "unsure",
    "s, median",
    "same twice",
    "alpha",
)


def rows(found: Scored) -> list[tuple[str, ...]]:
    """The readers as text, in `COLUMNS`; the mean over several last."""
    lines: list[tuple[str, ...]] = [
        (
            reader.reader,
            f"{reader.auc.value:.3f}",
            _ends(reader.auc),
            f"{reader.accuracy.found} of {reader.accuracy.of}",
            f"{reader.accuracy.low:.2f} to {reader.accuracy.high:.2f}",
            str(reader.unsure),
            f"{reader.median_s:.1f}",
            "" if reader.same is None else f"{reader.same.found} of {reader.same.of}",
            "" if reader.alpha is None else span(reader.alpha),
        )
        for reader in found.readers
    ]
    if found.auc_all_readers is not None:
        lines.append(("mean, these readers", f"{found.auc.value:.3f}", _ends(found.auc), *[""] * 6))
        lines.append(("mean, all readers", f"{found.auc.value:.3f}", _ends(found.auc_all_readers), *[""] * 6))
    return lines


def span(estimate: Estimate) -> str:
    """A number with its interval."""
    if estimate.value is None:
        return "–"
    return f"{estimate.value:.2f}" + (f" ({_ends(estimate)})" if estimate.low is not None else "")


def _ends(estimate: Estimate) -> str:
    return "" if estimate.low is None or estimate.high is None else f"{estimate.low:.2f} to {estimate.high:.2f}"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text: expected the JSON that the page saved") from error


def _found(files: Sequence[Path], study: str) -> Key:
    """The key of a study that lies beside the answers or here."""
    folders = dict.fromkeys([*(file.resolve().parent for file in files), Path.cwd()])
    for path in (path for folder in folders for path in sorted(folder.glob(KEY_GLOB))):
        try:
            key = read_key(_text(path), str(path))
        except ValueError:
            continue  # somebody else's file of that name
        if key.study() == study:
            return key
    raise ValueError(
        f"no key of study {study} lies beside the answers or here: give the {KEY_GLOB} that was written with the page "
        "as --key"
    )


def _given(answers: Answers, showing: int) -> dict[str, int]:
    return {one.id: one.answer for one in answers.answers if one.showing == showing}


def _areas(first: NDArray[np.int_], real: int, weights: Array) -> tuple[Array, Array]:
    """AUC of every reader, and in every resample (readers, resamples)."""
    ones = np.ones((1, first.shape[1]))
    areas: list[float] = []
    resampled: list[Array] = []
    for row in first.astype(np.float32):
        judged = Detection(
            row[:real], row[real:], np.zeros(real, np.intp), np.zeros(len(row) - real, np.intp)
        )  # fmt: skip
        areas.append(float(weighted_area(judged, ones[:, :real], ones[:, real:])[0]))
        resampled.append(weighted_area(judged, weights[:, :real], weights[:, real:]))
    return np.array(areas), np.stack(resampled)


def _around(area: float, resampled: Array, fewest: int) -> Estimate:
    """An AUC with its 95 % interval: normal on the logit scale, with the bootstrap's standard error.

    Unlike the bootstrap's own percentiles it holds near 0 and 1, too. At 0 and 1 every resample says the same, and the
    interval is Wilson's with one trial for every group of the side that has fewer.
    """
    if area in (0.0, 1.0):
        low, high = wilson(round(area * fewest), fewest)
        return Estimate(value=area, low=low, high=high)
    return _logit(area, float(np.nanstd(resampled, ddof=1)), 1.959963984540054)


def _logit(area: float, error: float, quantile: float) -> Estimate:
    moved = quantile * error / (area * (1 - area))
    return Estimate(value=area, low=float(expit(logit(area) - moved)), high=float(expit(logit(area) + moved)))


def _of_all_readers(areas: Array, resampled: Array) -> Estimate:
    """The mean AUC with an interval for other readers and other pictures.

    Source: Obuchowski and Rockette, Commun. Stat. Simul. 24:285, 1995, for one modality, with the degrees of freedom
    of Hillis, Stat. Med. 26:596, 2007. Covariances are the bootstrap's.
    """
    count, mean = len(areas), float(areas.mean())
    kept = resampled[:, np.isfinite(resampled).all(axis=0)]
    covariances = np.cov(kept)
    shared = float((covariances.sum() - np.trace(covariances)) / (count * (count - 1)))
    between = float(areas.var(ddof=1))
    summed = between + count * max(shared, 0.0)
    if mean in (0.0, 1.0) or summed == 0:
        return Estimate(value=mean)
    freedom = summed**2 / (between**2 / (count - 1)) if between > 0 else np.inf
    quantile = float(stdtrit(freedom, 0.975)) if np.isfinite(freedom) else 1.959963984540054
    return _logit(mean, float(np.sqrt(summed / count)), quantile)


def _reader(file: str, answers: Answers, row: NDArray[np.int_], real: int, auc: Estimate, key: Key) -> Reader:
    sure = row != UNSURE
    right = int(((row < UNSURE) == (np.arange(len(row)) < real))[sure].sum())
    low, high = wilson(right, int(sure.sum()))
    once, twice = _given(answers, 1), _given(answers, 2)
    pairs = [[once[id], again] for id, again in twice.items()]
    group = {one.id: one.group for one in key.pictures}
    return Reader(
        reader=answers.reader or f"reader {answers.session[:6]}",
        experience=answers.experience,
        file=file,
        auc=auc,
        accuracy=Share(found=right, of=int(sure.sum()), low=low, high=high),
        unsure=int((~sure).sum()),
        median_s=float(np.median([one.ms for one in answers.answers if one.showing == 1])) / 1000,
        same=_same(pairs) if pairs else None,
        alpha=_agreement(pairs, group_weights([group[id] for id in twice], RESAMPLES, np.random.default_rng(0)))
        if pairs
        else None,
    )


def _same(pairs: Sequence[Sequence[int]]) -> Share:
    same = sum(one == other for one, other in pairs)
    low, high = wilson(same, len(pairs))
    return Share(found=same, of=len(pairs), low=low, high=high)


def _agreement(answers: Sequence[Sequence[int]], weights: Array) -> Estimate:
    """Krippendorff's alpha of the answers to each picture, with its bootstrap interval; without where resamples have
    nothing to agree on."""
    counts = counted(answers, len(SCALE))
    value = float(alpha(counts)[0])
    if not np.isfinite(value):
        return Estimate()
    resampled = alpha(counts, weights)
    finite = resampled[np.isfinite(resampled)]
    if len(finite) < 0.95 * len(resampled):
        return Estimate(value=value)
    low, high = central_interval(finite)
    return Estimate(value=value, low=low, high=high)
