"""What an ablation found: one row a variant, and the table that people read."""

from collections.abc import Sequence

from storage.records import Record


class Interval(Record):
    """A number and its central 95 % interval; None where there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Row(Record):
    """One variant of a recipe. `changes` are what `--set` would take; scores are of all `made` images, kept or not,
    because a better filter must not pass for a better generator. `seconds` is for one image, through all stages."""

    variant: str
    changes: list[str]
    made: int
    acceptance: Interval
    detector_auc: Interval
    kid: Interval
    segmenter_dice: Interval
    contrast: Interval
    seconds: float | None


class Ablation(Record):
    """Variants of one recipe, the whole recipe first."""

    recipe: str
    recipe_digest: str
    rows: list[Row]


COLUMNS = (
    "variant",
    "made",
    "accepted",
    "detector AUC",
    "KID",
    "segmenter Dice, median",
    "contrast, median",
    "images/s",
    "changes",
)


def rows(ablation: Ablation) -> list[tuple[str, ...]]:
    """The variants as text, in `COLUMNS`."""
    return [
        (
            row.variant,
            str(row.made),
            _span(row.acceptance),
            _span(row.detector_auc),
            _span(row.kid),
            _span(row.segmenter_dice),
            _span(row.contrast),
            "" if not row.seconds else f"{1 / row.seconds:.2f}",
            " ".join(row.changes) if sum(map(len, row.changes)) < 60 else "see ablation.json",
        )
        for row in ablation.rows
    ]


def markdown(ablation: Ablation) -> str:
    """The page of an ablation."""
    lines: list[Sequence[str]] = [COLUMNS, ["---"] * len(COLUMNS), *rows(ablation)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return (
        f"# What each part of {ablation.recipe} buys\n\nScores are of all images made, before curation; in brackets "
        "95 % intervals, bootstrap over groups. Detector AUC: real training lesions or made ones, 0.5 is best. KID: to "
        f"held-out real lesions, lower is better.\n\n{table}\n"
    )


def _span(found: Interval) -> str:
    if found.value is None:
        return "none"
    inside = "" if found.low is None or found.high is None else f" ({found.low:.3f} to {found.high:.3f})"
    return f"{found.value:.3f}{inside}"
