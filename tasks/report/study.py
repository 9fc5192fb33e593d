"""What a utility study found: its numbers as records, and the table that people read."""

from collections.abc import Sequence

from storage.records import Record


class Estimate(Record):
    """One number with its central 95 % interval. `fold` is None where all folds are pooled.

    `n` counts the real images judged, `n_synthetic` the synthetic ones; `floor*` is the same number between real
    images; `p` the permutation p-value. `value` is None where there is no number; `note` then says why.
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
    note: str = ""


class FoldFacts(Record):
    """What became of one fold's dataset. `problems` are what its gate found; it is studied all the same."""

    fold: int
    dataset: str
    planned: int
    kept: int
    rejected: dict[str, int]
    failed: int
    problems: list[str]
    published: str | None
    critic: dict[str, float]  # what the critic reached on lesions of groups it did not learn from


class Claim(Record):
    """A number of a paper, whose protocol is not fully known."""

    measure: str
    arm: str
    value: float
    source: str


CLAIMS = (
    Claim(measure="real or synthetic, AUC", arm="window", value=0.563, source="Wen et al. 2026, ResNet-101"),
    Claim(measure="segmentation, mean Dice", arm="difference", value=0.026, source="Wen et al. 2026, U-Net F1"),
    Claim(measure="segmentation, pixel F1", arm="difference", value=0.026, source="Wen et al. 2026, U-Net F1"),
    Claim(measure="classification, AUC", arm="difference", value=0.06, source="Freiche et al. 2025"),
)


class Study(Record):
    """A utility study: k folds by group, each with a generator and judges of its own that saw only the rest."""

    recipe: str
    recipe_digest: str
    params: dict[str, object]
    folds: int
    seeds: int
    facts: list[FoldFacts]
    estimates: list[Estimate]
    to_beat: tuple[Claim, ...] = CLAIMS

    def pooled(self) -> list[Estimate]:
        """The numbers over all folds."""
        return [estimate for estimate in self.estimates if estimate.fold is None]

    def by_fold(self, of: Estimate) -> list[float | None]:
        """The same number in each fold, in their order; folds without it are left out."""
        same = [e for e in self.estimates if e.fold is not None and (e.measure, e.arm) == (of.measure, of.arm)]
        return [estimate.value for estimate in sorted(same, key=lambda e: e.fold or 0)]


COLUMNS = ("measure", "arm", "value", "95 % interval", "N", "real vs real", "to beat", "by fold")


def rows(study: Study) -> list[tuple[str, ...]]:
    """The pooled numbers as text, in `COLUMNS`."""
    return [_row(study, estimate) for estimate in study.pooled()]


def markdown(study: Study) -> str:
    """The page of a study: the table, the folds, how to read it."""
    facts = [
        (
            str(fact.fold),
            f"{fact.kept} of {fact.planned}",
            ", ".join(f"{name} {count}" for name, count in fact.rejected.items()) or "none",
            f"{fact.critic['auc']:.3f} on {fact.critic['n_real']:.0f} + {fact.critic['n_generated']:.0f}"
            if "auc" in fact.critic
            else "none",
            fact.published or "; ".join(fact.problems) or "nothing kept",
        )
        for fact in study.facts
    ]
    notes = dict.fromkeys(f"- {e.measure}, {e.arm}: {e.note}" for e in study.pooled() if e.note)
    claims = [f"- {claim.measure}, {claim.arm}: {claim.value:+g} ({claim.source})" for claim in study.to_beat]
    return "\n".join(
        [
            f"# Does {study.recipe} help?",
            "",
            f"{study.folds} folds by group, {study.seeds} seed(s) of every downstream network. For each fold a "
            "generator, its judges and every network were trained on the other groups alone; every number is about "
            "the test groups of its fold, each group tested once. Intervals: 95 %, bootstrap over groups; they hold "
            "the chance of who is tested, not of another training run.",
            "",
            _table(COLUMNS, rows(study)),
            "",
            "## Folds",
            "",
            _table(("fold", "kept", "rejected", "critic, held-out AUC", "version, or why it was not published"), facts),
            "",
            "## Notes",
            "",
            *notes,
            "",
            "## To beat (published, protocols unclear)",
            "",
            *claims,
            "",
        ]
    )


def _row(study: Study, estimate: Estimate) -> tuple[str, ...]:
    claim = next((c for c in study.to_beat if (c.measure, c.arm) == (estimate.measure, estimate.arm)), None)
    count = str(estimate.n) + (f" + {estimate.n_synthetic}" if estimate.n_synthetic else "")
    value = "none" if estimate.value is None else _number(estimate.value)
    floor = (
        "" if estimate.floor is None else f"{_number(estimate.floor)} {_span(estimate.floor_low, estimate.floor_high)}"
    )
    return (
        estimate.measure,
        estimate.arm,
        value + ("" if estimate.p is None else f" (p = {estimate.p:.2g})"),
        _span(estimate.low, estimate.high),
        count,
        floor,
        "" if claim is None else _number(claim.value),
        "  ".join("none" if value is None else _number(value) for value in study.by_fold(estimate)),
    )


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"
