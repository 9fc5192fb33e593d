"""What a utility study found: its numbers as records, and the table that people read."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from storage.records import Record


class Estimate(Record):
    """One number with its central 95 % interval. `fold` is None where all folds are pooled.

    `n` counts the real images judged, `n_synthetic` the synthetic ones; `floor*` is the same number between real
    images; `p` the permutation p-value. `value` is None where there is no number; `note` then says why.

    Of a downstream network: `tested` says on whom, `regime` how many real training scans there were (up to 1 a share,
    0 none), `real_images` and `synthetic_images` how many it learned from on average, `trainings` how many networks
    answered. A difference names the arm that was taken from it in `over`, and in how many trainings it was `better`;
    of errors, where `less_is_better`, a good difference is negative.
    """

    measure: str
    arm: str
    fold: int | None
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    n_synthetic: int = 0
    floor: float | None = None
    floor_low: float | None = None
    floor_high: float | None = None
    p: float | None = None
    tested: str = "held out"
    regime: float | None = None
    real_images: float | None = None
    synthetic_images: float | None = None
    over: str | None = None
    trainings: int = 0
    better: int | None = None
    less_is_better: bool = False
    note: str = ""

    @property
    def about(self) -> tuple[object, ...]:
        """What is the same in every fold."""
        return (self.measure, self.arm, self.over, self.tested, self.regime)


class FoldFacts(Record):
    """What became of one fold's dataset. `problems` are what its gate found; it is studied all the same.

    `learned_from` counts the real images of its training split, `tested` those of its test split. Of the leakage check
    of both and of the kept synthetic images, `looked_at` counts pictures and `leaks` what spans splits, by kind.
    """

    fold: int
    dataset: str
    planned: int
    kept: int
    rejected: dict[str, int]
    failed: int
    problems: list[str]
    published: str | None
    critic: dict[str, float]  # what the critic reached on lesions of groups it did not learn from
    learned_from: int = 0
    tested: int = 0
    looked_at: int = 0
    leaks: dict[str, int] = Field(default={})


class Claim(Record):
    """A number of a paper, whose protocol is not fully known; of a gain, where all real images are learned from."""

    measure: str
    arm: str
    value: float
    source: str


GAIN = "real + synthetic, gain"
Subject = Literal["lesion", "head"]
"""What the masks of a dataset outline."""

CLAIMS: dict[Subject, tuple[Claim, ...]] = {
    "lesion": (
        Claim(measure="real or synthetic, AUC", arm="window", value=0.563, source="Wen et al. 2026, ResNet-101"),
        Claim(measure="segmentation, mean Dice", arm=GAIN, value=0.026, source="Wen et al. 2026, U-Net F1"),
        Claim(measure="segmentation, pixel F1", arm=GAIN, value=0.026, source="Wen et al. 2026, U-Net F1"),
        Claim(measure="classification, AUC", arm=GAIN, value=0.06, source="Freiche et al. 2025"),
    ),
    "head": (
        Claim(
            measure="SAM, mean Dice",
            arm="real + synthetic",
            value=0.9466,
            source="Wang et al. 2025, ViT-B, boxes from the ground truth, a Spanish cohort",
        ),
        Claim(
            measure="SAM, mean Dice",
            arm="real + synthetic",
            value=0.9438,
            source="Wang et al. 2025, the same, an African cohort",
        ),
    ),
}


class Study(Record):
    """A utility study: k folds by group, each with a generator and judges of its own that saw only the rest."""

    recipe: str
    recipe_digest: str
    params: dict[str, object]
    folds: int
    seeds: int
    facts: list[FoldFacts]
    estimates: list[Estimate]
    subject: Subject = "lesion"
    networks: list[str] = Field(default=[])  # of those whose weights others trained, or nobody: which they are
    to_beat: tuple[Claim, ...] = CLAIMS["lesion"]

    def pooled(self) -> list[Estimate]:
        """The numbers over all folds."""
        return [estimate for estimate in self.estimates if estimate.fold is None]

    def by_fold(self, of: Estimate) -> list[float | None]:
        """The same number in each fold, in their order; folds without it are left out."""
        same = [e for e in self.estimates if e.fold is not None and e.about == of.about]
        return [estimate.value for estimate in sorted(same, key=lambda e: e.fold or 0)]

    def curves(self) -> dict[tuple[str, str], list[Estimate]]:
        """The pooled numbers of downstream networks, gains among them, by measure and who was tested."""
        found: dict[tuple[str, str], list[Estimate]] = {}
        for estimate in self.pooled():
            if estimate.regime is not None:
                found.setdefault((estimate.measure, estimate.tested), []).append(estimate)
        return found


COLUMNS = ("measure", "arm", "real images", "value", "95 % interval", "N", "real vs real", "to beat", "by fold")


def rows(study: Study) -> list[tuple[str, ...]]:
    """The pooled numbers as text, in `COLUMNS`."""
    return [_row(study, estimate) for estimate in study.pooled()]


def markdown(study: Study) -> str:
    """The page of a study: what to read first, the tables, the folds, how to read it."""
    curves: list[str] = []
    for (measure, tested), estimates in study.curves().items():
        curves += [f"## {measure}, {tested}", "", _table(*grid(estimates)), ""]
    return "\n".join(
        [
            f"# Does {study.recipe} help?",
            "",
            how_to_read(study),
            "",
            *(f"- {sentence}" for sentence in findings(study)),
            "",
            *curves,
            "## The synthetic images",
            "",
            _table(*about_synthetic(study)),
            "",
            "## Folds",
            "",
            _table(*about_folds(study)),
            "",
            leakage(study),
            "",
            "## Notes",
            "",
            *(f"- {note}" for note in notes(study)),
            "",
            "## To beat (published, protocols unclear)",
            "",
            *(f"- {claim}" for claim in claims(study)),
            "",
        ]
    )


def how_to_read(study: Study) -> str:
    """What the numbers are about, in words."""
    return (
        f"{study.folds} folds by group, up to {study.seeds} training(s) of every downstream network a fold. For each "
        f"fold a generator, its judges and every network were trained on the other groups alone{_learned(study)}; "
        f"every number is about the {study.subject}s of the test groups of its fold, each group tested once, or about "
        "another dataset that nothing learned from (external). Few real images are the same ones in every arm; but the "
        "generator of a fold had seen all its training groups. All networks of a regime are trained for as many steps; "
        "segmentation is by a residual U-Net. Intervals: 95 %, bootstrap over groups and, for downstream networks, "
        "over trainings." + "".join(f" {sentence}." for sentence in study.networks)
    )


def _learned(study: Study) -> str:
    counts = sorted({fact.learned_from for fact in study.facts if fact.learned_from})
    return f" ({' or '.join(map(str, counts))} scans)" if counts else ""


def notes(study: Study) -> list[str]:
    """What numbers say of themselves."""
    return list(dict.fromkeys(f"{e.measure}, {e.arm}: {e.note}" for e in study.pooled() if e.note))


def claims(study: Study) -> list[str]:
    """Published numbers, gains with their sign."""
    return [
        f"{claim.measure}, {claim.arm}: {claim.value:{'+g' if claim.arm == GAIN else 'g'}} ({claim.source})"
        for claim in study.to_beat
    ]


def leakage(study: Study) -> str:
    """What the leakage check of the folds found, in words; nothing where none was made."""
    if not any(fact.looked_at for fact in study.facts):
        return ""
    found = [
        f"fold {fact.fold}: {', '.join(f'{kind} {count}' for kind, count in fact.leaks.items())}"
        for fact in study.facts
        if fact.leaks
    ]
    looked = " and ".join(str(fact.looked_at) for fact in study.facts)
    return (
        f"Leakage: among {looked} pictures of the folds, real ones of all splits and kept synthetic ones, groups, "
        "copies, neighbouring frames and ancestors of synthetic images were looked for that lie in more than one "
        "split: " + (f"found {'; '.join(found)}. The numbers above are not to be trusted." if found else "none.")
    )


def findings(study: Study) -> list[str]:
    """What each arm gains, a sentence for each measure, those that are surely better first; of pixel F1 only tables
    tell."""
    gains = [e for e in study.pooled() if e.over is not None and e.low is not None and not e.measure.endswith("F1")]
    kinds = list(dict.fromkeys((e.measure, e.tested, e.arm) for e in gains))
    told: list[tuple[bool, str]] = []
    for measure, tested, arm in kinds:
        own = [e for e in gains if (e.measure, e.tested, e.arm) == (measure, tested, arm)]
        verdicts = {verdict: [e for e in own if _verdict(e) == verdict] for verdict in VERDICTS}
        parts = [f"{verdict} {_counts(of)}" for verdict, of in verdicts.items() if of]
        told.append((not verdicts["better"], f"{measure}, {tested}, {arm}, over {own[0].over}: {'; '.join(parts)}"))
    return [sentence for _, sentence in sorted(told, key=lambda line: line[0])]


VERDICTS = ("better", "worse", "not told apart")
"""Of a difference: its interval excludes zero, in the good direction or the other, or holds it."""


def _verdict(gain: Estimate) -> str:
    low, high = (
        ((gain.low or 0), (gain.high or 0)) if not gain.less_is_better else (-(gain.high or 0), -(gain.low or 0))
    )
    return "better" if low > 0 else "worse" if high < 0 else "not told apart"


def _counts(gains: Sequence[Estimate]) -> str:
    told = "with {:.0f} real images ({}, {}, good in {} of {} trainings)"
    return ", ".join(
        told.format(e.real_images or 0, _signed(e.value or 0), _span(e.low, e.high), e.better, e.trainings)
        for e in gains
    )


def grid(estimates: Sequence[Estimate]) -> tuple[list[str], list[list[str]]]:
    """One measure as a table: a row for each number of real images, a column for each arm and each gain."""
    columns = list(dict.fromkeys(_arm_name(e) for e in estimates))
    regimes = list(dict.fromkeys(e.regime for e in estimates))
    cells = {(e.regime, _arm_name(e)): e for e in estimates}
    lines: list[list[str]] = []
    for regime in regimes:
        own = [cells.get((regime, column)) for column in columns]
        counts = sorted({e.real_images for e in own if e is not None and e.real_images is not None})
        lines.append([f"{counts[0]:.0f}" if counts else "none", *(_cell(e) for e in own)])
    return ["real images", *columns], lines


def about_synthetic(study: Study) -> tuple[list[str], list[list[str]]]:
    """The pooled numbers about the synthetic images themselves, without the columns in which no line says anything."""
    return _used(COLUMNS, [_row(study, estimate) for estimate in study.pooled() if estimate.regime is None])


FOLD_COLUMNS = (
    "fold",
    "scans learned from",
    "scans tested",
    "kept",
    "rejected",
    "critic, held-out AUC",
    "version, or why it was not published",
)


def about_folds(study: Study) -> tuple[list[str], list[list[str]]]:
    """What became of each fold's dataset, without the columns in which no line says anything."""
    lines = [
        (
            str(fact.fold),
            str(fact.learned_from or ""),
            str(fact.tested or ""),
            f"{fact.kept} of {fact.planned}",
            ", ".join(f"{name} {count}" for name, count in fact.rejected.items()) or "none",
            f"{fact.critic['auc']:.3f} on {fact.critic['n_real']:.0f} + {fact.critic['n_generated']:.0f}"
            if "auc" in fact.critic
            else "",
            fact.published or "; ".join(fact.problems) or "nothing kept",
        )
        for fact in study.facts
    ]
    return _used(FOLD_COLUMNS, lines)


def _used(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    used = [at for at in range(len(columns)) if any(line[at] for line in lines)]
    return [columns[at] for at in used], [[line[at] for at in used] for line in lines]


def _row(study: Study, estimate: Estimate) -> tuple[str, ...]:
    named = _arm_name(estimate)
    most = max((e.real_images or 0 for e in study.pooled()), default=0)
    comparable = estimate.regime is None or (estimate.tested == "held out" and estimate.real_images == most)
    claim = next((c for c in study.to_beat if (c.measure, c.arm) == (estimate.measure, named) and comparable), None)
    count = str(estimate.n) + (f" + {estimate.n_synthetic}" if estimate.n_synthetic else "")
    value = "none" if estimate.value is None else _number(estimate.value)
    floor = (
        "" if estimate.floor is None else f"{_number(estimate.floor)} {_span(estimate.floor_low, estimate.floor_high)}"
    )
    return (
        estimate.measure + ("" if estimate.tested == "held out" else f", {estimate.tested}"),
        named,
        "" if estimate.real_images is None else f"{estimate.real_images:.0f}",
        value + ("" if estimate.p is None else f" (p = {estimate.p:.2g})"),
        _span(estimate.low, estimate.high),
        count,
        floor,
        "" if claim is None else _number(claim.value),
        "  ".join("none" if value is None else _number(value) for value in study.by_fold(estimate)),
    )


def _arm_name(estimate: Estimate) -> str:
    if estimate.over is None:
        return estimate.arm
    return f"{estimate.arm}, {'difference' if estimate.less_is_better else 'gain'}"


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if estimate.value is None:
        return "none"
    shown = _number(estimate.value) if estimate.over is None else _signed(estimate.value)
    return f"{shown} ({_span(estimate.low, estimate.high)})"


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _signed(value: float) -> str:
    return ("+ " if value >= 0 else "- ") + _number(abs(value))


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"
