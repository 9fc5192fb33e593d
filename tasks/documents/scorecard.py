"""scorecard.json of a version: what was measured of a synthetic dataset, and what was not, under seven headings.

The headings are the 7 Cs of Zamzmi et al. (U.S. Food and Drug Administration, Office of Science and Engineering
Laboratories): "Scorecard for synthetic medical data evaluation", Communications Engineering 4:130, 2025,
doi:10.1038/s44172-025-00450-1; preprint "Scorecards for Synthetic Medical Data Evaluation and Reporting",
arXiv:2406.11143. Which numbers stand under which heading is sonoforge's choice. The FDA has neither seen nor endorsed
any of this.

The JSON, whose schema is `Scorecard.model_json_schema()`:

- `criteria`: seven, always in the paper's order, each with `name` and the `question` that it answers;
- `measured`: numbers as they were found, with `value`, its 95 % interval (`low`, `high`), how many images they are
  about (`n_real`, `n_synthetic`), what the same score is between two halves of real images (`floor…`) and how many
  times that the value is (`over_floor…`), the `p`-value of a test, what the score says of images damaged on purpose
  (`control`), the `extractor`, and a `note`. A `value` of null was refused, and the note says why;
- `not_measured`: what belongs under the heading and nobody looked at. It is never filled with a guess;
- `checks`: what was asked for in advance, by the recipe or by the format, and whether it holds;
- `verdict`: "fail" where a check does not hold, else "warn" where one holds only in part, else "pass"; and
  "no criterion" where nothing was asked for: numbers alone do not pass or fail.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from storage.records import Record, SetScore
from tasks.documents.facts import Facts
from tasks.documents.routes import route

FORMAT = "sonoforge-scorecard-1"
FRAMEWORK = (
    "Zamzmi G et al. Scorecard for synthetic medical data evaluation. Communications Engineering 4:130, 2025. "
    "doi:10.1038/s44172-025-00450-1 (7 Cs; arXiv:2406.11143). The choice of measurements is sonoforge's."
)
Verdict = Literal["pass", "warn", "fail", "no criterion"]

LINEAGE = ("base_digest", "adapter_digest", "seed", "prompt", "recipe_digest")
"""What every kept row must say of how it was made; and which background it was drawn into, where it was."""

REQUIRED = ("id", "label", "organ", "dataset", "group", "split", "sha256", "licence")
"""What every kept row must say of itself."""

_UNDER = {
    "fid": "congruence",
    "kid": "congruence",
    "detector_auc": "congruence",
    "precision": "congruence",
    "density": "congruence",
    "recall": "coverage",
    "coverage": "coverage",
    "membership_auc": "compliance",
    "samples kept": "completeness",
}
"""Where a set score stands; one that is not listed is about likeness to real images."""


_COPIES = {"nearest_similarity": "training lesion or head", "picture_similarity": "training picture"}
"""Image scores that find copies, and of what."""


class Measurement(Record):
    """One number."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    floor_low: float | None = None
    floor_high: float | None = None
    over_floor: float | None = None
    over_floor_low: float | None = None
    over_floor_high: float | None = None
    p: float | None = None
    control: float | None = None
    n_real: int | None = None
    n_synthetic: int | None = None
    extractor: str | None = None
    note: str = ""


class Check(Record):
    """Something asked for in advance: by whom, and whether it holds."""

    asked: str
    asked_by: Literal["recipe", "format"]
    verdict: Literal["pass", "warn", "fail"]
    found: str


class Criterion(Record):
    """One of the seven."""

    name: str
    question: str
    verdict: Verdict
    measured: list[Measurement]
    checks: list[Check]
    not_measured: list[str]


class Scorecard(Record):
    """All seven, about one version's content."""

    format: Literal["sonoforge-scorecard-1"] = FORMAT
    dataset: str
    framework: str = FRAMEWORK
    planned: int
    kept: int
    criteria: list[Criterion]


def judge(facts: Facts) -> Scorecard:
    """The scorecard of a version. Same facts, same card: it names no date and no version number."""
    return Scorecard(
        dataset=facts.dataset,
        planned=facts.outcome.planned,
        kept=facts.outcome.kept,
        criteria=[fill(facts) for fill in _CRITERIA],
    )


def render(card: Scorecard) -> str:
    """The card as JSON."""
    return card.model_dump_json(indent=1) + "\n"


def _congruence(facts: Facts) -> Criterion:
    return _criterion(
        "congruence",
        "Are synthetic images distributed as real ones are?",
        [_measured(score) for score in facts.outcome.scores if _UNDER.get(score.name, "congruence") == "congruence"],
        _gates(facts, "congruence"),
        ["what readers think of single images", "likeness within subgroups of patients"],
    )


def _coverage(facts: Facts) -> Criterion:
    tally = facts.tally
    scored = [_measured(score) for score in facts.outcome.scores if _UNDER.get(score.name) == "coverage"]
    counted = [_share(f"kept samples labelled {label}", n, tally.kept) for label, n in tally.by_label().items()]
    distinct = [
        Measurement(name=f"different {what}", value=tally.distinct.get(column, 0), n_synthetic=tally.kept)
        for column, what in (
            *([("background_id", "backgrounds")] if route(facts.recipe) == "lesion" else []),
            ("mask_id", "masks that outlines descend from"),
            ("levels_id", "lesions that grey levels descend from"),
            ("group", "patients, exams or clusters"),
        )
    ]
    missing = [] if scored else ["recall and coverage of the real distribution in a feature space"]
    return _criterion(
        "coverage",
        "Do they show the variety of real images, and anything new?",
        [*scored, *counted, *distinct],
        _gates(facts, "coverage"),
        [*missing, "novelty beyond the scans they descend from", "scanners, body habitus, age and other subgroups"],
    )


def _constraint(facts: Facts) -> Criterion:
    outcome, tally = facts.outcome, facts.tally
    rejected = sum(outcome.rejected.values())
    measured = [
        _share("planned samples rejected by a limit", rejected, outcome.planned),
        _share("planned samples that could not be made", outcome.failed, outcome.planned),
    ]
    if route(facts.recipe) == "lesion":
        name = "kept pictures untouched outside their declared region"
        measured.append(_share(name, tally.untouched, tally.compared))
    checks = [
        Check(
            asked=f"{name} {_between(low, high)}, where it applies",
            asked_by="recipe",
            verdict="pass",  # what misses a limit is not kept
            found=f"{outcome.rejected.get(name, 0)} of {outcome.planned} planned samples rejected for it first",
        )
        for name, (low, high) in facts.limits.items()
    ]
    return _criterion(
        "constraint",
        "Do they keep to anatomy, physics and geometry as far as those can be checked?",
        measured,
        checks,
        ["anatomy and acoustics as an expert would judge them", "artefacts that no score looks for"],
    )


def _completeness(facts: Facts) -> Criterion:
    outcome, tally = facts.outcome, facts.tally
    ended = outcome.kept + sum(outcome.rejected.values()) + outcome.failed
    empty = [name for name in REQUIRED if tally.filled.get(name, 0) < tally.kept]
    checks = [
        _check(
            "planned = kept + rejected + failed, each with a row in ledger.parquet",
            ended == outcome.planned == sum(tally.planned.values()) and outcome.kept == tally.kept,
            f"{outcome.planned} planned, {ended} ended, {sum(tally.planned.values())} rows",
        ),
        _check(
            f"every kept row has {', '.join(REQUIRED)}",
            not empty,
            f"missing somewhere: {', '.join(empty)}" if empty else f"all {tally.kept} have",
        ),
    ]
    measured = [
        _share("kept samples with a known pixel size", tally.filled.get("pixel_mm", 0), tally.kept),
        *(_share(f"kept samples with {name}", tally.filled.get(name, 0), tally.kept) for name in facts.score_names),
    ]
    return _criterion(
        "completeness",
        "Does every sample come with what its use needs?",
        measured,
        [*checks, *_gates(facts, "completeness")],
        ["age, history, BI-RADS category and other clinical data: they are not generated"],
    )


def _compliance(facts: Facts) -> Criterion:
    terms = facts.terms
    found = f"{terms.name}; " + (" ".join(terms.warnings) or "all are known")
    copies = [
        Measurement(
            name=f"{name} of {label} samples, the highest",
            value=round(spread.high, 6),
            n_synthetic=spread.count,
            note=f"likeness to the nearest {_COPIES[name]}; 1 is a copy",
        )
        for label, spreads in facts.tally.scores.items()
        for name, spread in spreads.items()
        if name in _COPIES and spread.count
    ]
    backgrounds = [
        _share(f"kept samples on a {kind} background", count, facts.tally.kept)
        for kind, count in facts.tally.backgrounds.items()
    ]
    checks = [
        Check(
            asked="the licences of all sources are known and do not contradict each other",
            asked_by="format",
            verdict="warn" if terms.warnings else "pass",
            found=found,
        )
    ]
    scored = [_measured(score) for score in facts.outcome.scores if _UNDER.get(score.name) == "compliance"]
    missing = [] if copies else ["copies of training pictures"]
    missing += [] if scored else ["whether the adapters betray which scans they were trained on"]
    return _criterion(
        "compliance",
        "Are privacy, licences and formats kept to?",
        [*backgrounds, *copies, *scored],
        [*checks, *_gates(facts, "compliance")],
        [*missing, "differential privacy", "re-identification by experts", "consent and ethics approval"],
    )


def _comprehension(facts: Facts) -> Criterion:
    tally = facts.tally
    lineage = ("background_id", *LINEAGE) if route(facts.recipe) == "lesion" else LINEAGE
    gaps = [name for name in lineage if tally.filled.get(name, 0) < tally.kept]
    checks = [
        _check(
            f"every kept row says how it was made: {', '.join(lineage)}",
            not gaps,
            f"missing somewhere: {', '.join(gaps)}" if gaps else f"all {tally.kept} do",
        )
    ]
    named = ", ".join(item.name for item in facts.ingredients)
    measured = [
        Measurement(name="weights and data that went in, named by digest", value=len(facts.ingredients), note=named)
    ]
    return _criterion(
        "comprehension",
        "Can one see how they were made, and do it again?",
        measured,
        checks,
        ["whether readers understand the documents", "whether another machine makes the same bytes"],
    )


def _consistency(facts: Facts) -> Criterion:
    tally = facts.tally
    kept = tally.by_label()
    measured = [
        _share(f"planned samples labelled {label} that were kept", kept.get(label, 0), planned)
        for label, planned in tally.planned.items()
    ]
    for name in facts.score_names:
        spreads = {label: scores[name] for label, scores in tally.scores.items() if name in scores}
        means = {label: spread.mean for label, spread in spreads.items() if spread.mean is not None}
        for label, mean in sorted(means.items()):
            measured.append(
                Measurement(
                    name=f"{name} of {label} samples, mean", value=round(mean, 6), n_synthetic=spreads[label].count
                )
            )
        if len(means) > 1:
            apart = max(means.values()) - min(means.values())
            measured.append(Measurement(name=f"{name}, largest difference between labels", value=round(apart, 6)))
    checks = [
        _check(
            "no patient, exam or cluster is in two splits",
            not tally.torn,
            f"{len(tally.torn)} are, such as {tally.torn[0]}"
            if tally.torn
            else f"none of {tally.distinct.get('group', 0)}",
        )
    ]
    return _criterion(
        "consistency",
        "Is quality the same for every label, subgroup and time?",
        measured,
        checks,
        ["subgroups of patients: the sources do not name them", "over time: compare versions with `sonoforge diff`"],
    )


_CRITERIA: tuple[Callable[[Facts], Criterion], ...] = (
    _congruence,
    _coverage,
    _constraint,
    _completeness,
    _compliance,
    _comprehension,
    _consistency,
)


def _criterion(
    name: str, question: str, measured: Sequence[Measurement], checks: Sequence[Check], not_measured: Sequence[str]
) -> Criterion:
    found = {check.verdict for check in checks}
    order: tuple[Verdict, ...] = ("pass", "warn", "fail")
    verdict: Verdict = "no criterion"
    for worse in order:
        verdict = worse if worse in found else verdict
    return Criterion(
        name=name,
        question=question,
        verdict=verdict,
        measured=list(measured),
        checks=list(checks),
        not_measured=list(not_measured),
    )


def _check(asked: str, holds: bool, found: str) -> Check:
    return Check(asked=asked, asked_by="format", verdict="pass" if holds else "fail", found=found)


def _gates(facts: Facts, heading: str) -> list[Check]:
    """What the recipe asked of the set's scores under a heading. `problems` name the score that they are about."""
    checks: list[Check] = []
    for name, asked in facts.gates.items():
        if _UNDER.get(name, "congruence") == heading:
            missed = [problem for problem in facts.problems if name in problem]
            doubted = [warning for warning in facts.outcome.warnings if warning.startswith(f"{name} ")]
            checks.append(
                Check(
                    asked=asked,
                    asked_by="recipe",
                    verdict="fail" if missed else "warn" if doubted else "pass",
                    found="; ".join([*missed, *doubted]) or "met",
                )
            )
    return checks


def _measured(score: SetScore) -> Measurement:
    return Measurement(**score.model_dump())


def _share(name: str, part: int, whole: int) -> Measurement:
    """A share of images, with the two counts it comes from."""
    value = round(part / whole, 6) if whole else None
    return Measurement(name=name, value=value, n_synthetic=whole, note=f"{part} of {whole}")


def _between(low: float | None, high: float | None) -> str:
    limits = [*([f"≥ {low:g}"] if low is not None else []), *([f"≤ {high:g}"] if high is not None else [])]
    return " and ".join(limits)
