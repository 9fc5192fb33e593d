"""A drawn lesion takes the histogram of a real one, and nothing else of it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tasks.imaging import Grey, Mask, dilate
from tasks.synthesis import Donor, Draft, Tools, apply, levels
from tasks.synthesis.diffusion.base import Base
from tests.fakes import drafts as fakes

PX = 96
PARAMS = levels.Params(neighbours=1)


def picture(mask: Mask, inside: float, around: float, grain: float, seed: int) -> Grey:
    """Tissue of one level with a lesion of another, both grainy."""
    rng = np.random.default_rng(seed)
    return np.clip(np.where(mask, inside, around) + grain * rng.standard_normal(mask.shape), 0, 255).astype(np.uint8)


def lesion(row: float = 48, column: float = 48) -> Mask:
    return fakes.ellipse(PX, row, column, 14, 20)


def drawn(image: Grey, mask: Mask) -> Draft:
    draft = fakes.drafts(1, image)[0]
    return replace(draft, image=image, mask=mask, region=dilate(mask, 3))


def real(name: str, inside: float, around: float, grain: float, label: str = "benign") -> Donor:
    return Donor(name, lesion(), label, name, image=picture(lesion(), inside, around, grain, 7))


def run(draft: Draft, donors: list[Donor], base: Base) -> Draft:
    return apply(PARAMS, [draft], Tools(base=base, adapters={}, donors=donors))[0]


def test_a_faint_lesion_becomes_as_dark_as_the_real_one_in_like_surroundings(inpainting_base: Base) -> None:
    mask = lesion(40, 50)
    draft = drawn(picture(mask, 100, 120, 8, 0), mask)
    donors = [real("alike", 40, 122, 8), real("elsewhere", 10, 220, 8)]
    made = run(draft, donors, inpainting_base)
    core = levels._core(mask)
    assert made.image[core].mean() == pytest.approx(40, abs=4)
    assert made.lineage["levels_id"] == "alike"
    assert made.lineage["outside_changed_px"] == 0
    assert np.array_equal(made.image[~dilate(mask, 3)], draft.image[~dilate(mask, 3)])


def test_grain_is_scaled_to_that_of_the_real_lesion(inpainting_base: Base) -> None:
    mask = lesion()
    draft = drawn(picture(mask, 60, 120, 16, 0), mask)
    made = run(draft, [real("calm", 60, 120, 9)], inpainting_base)
    core = levels._core(mask)
    texture = [levels._parts(image, mask, PARAMS)[1][core].std() for image in (draft.image, made.image)]
    assert texture[1] / texture[0] == pytest.approx(9 / 16, abs=0.08)


def test_the_order_of_grey_levels_stays_as_drawn() -> None:
    mask = lesion()
    ramp = np.where(mask, np.linspace(30, 90, PX)[None, :], 120.0).astype(np.uint8)
    falling = np.where(mask, np.linspace(80, 10, PX)[None, :], 120.0).astype(np.uint8)
    made = levels.matched(ramp, mask, levels.look_of("real", falling, mask, PARAMS), PARAMS)
    core = levels._core(levels._core(mask))
    coarse = [levels._parts(image, mask, PARAMS)[0][core] for image in (ramp, made)]
    assert stats.spearmanr(*coarse).statistic > 0.99


def test_levels_come_from_the_seed_of_the_sample_and_the_class_of_the_lesion(inpainting_base: Base) -> None:
    mask = lesion()
    draft = drawn(picture(mask, 60, 120, 8, 0), mask)
    donors = [real(f"r{number}", 30 + 5 * number, 120, 8) for number in range(8)]
    tools = Tools(base=inpainting_base, adapters={}, donors=[*donors, real("other", 90, 120, 8, "malignant")])
    params = levels.Params(neighbours=8)
    taken = [apply(params, [replace(draft, seed=seed)], tools)[0].lineage["levels_id"] for seed in range(12)]
    again = [apply(params, [replace(draft, seed=seed)], tools)[0].lineage["levels_id"] for seed in range(12)]
    assert taken == again
    assert len(set(taken)) > 3
    assert "other" not in taken


def test_without_a_lesion_or_a_real_one_a_draft_fails_with_the_reason(inpainting_base: Base) -> None:
    mask = lesion()
    draft = drawn(picture(mask, 60, 120, 8, 0), mask)
    blind = Donor("no scan", mask, "benign", "g")
    assert "no real lesion of class 'benign'" in str(run(draft, [blind], inpainting_base).failure)
    unplaced = replace(draft, mask=None, region=None)
    assert "found no lesion" in str(run(unplaced, [real("r", 40, 120, 8)], inpainting_base).failure)
