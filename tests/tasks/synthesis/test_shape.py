from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from tasks.imaging import Mask, letterbox
from tasks.sources import busi
from tasks.synthesis import deformation, shape
from tasks.synthesis.tissue import Place, place_of
from tests.fakes.drafts import ellipse

BUSI = Path(__file__).parents[4] / "shared" / "data" / "busi" / "Dataset_BUSI_with_GT"


def star(px: int, waves: float, amplitude: float) -> Mask:
    """A disc of radius px / 4 whose outline waves."""
    rows, columns = np.mgrid[:px, :px] - px / 2
    turn = np.arctan2(rows, columns)
    return np.hypot(rows, columns) <= px / 4 * (1 + amplitude * np.sin(waves * turn))


def ellipses(count: int, seed: int = 0) -> list[shape.Example]:
    rng = np.random.default_rng(seed)
    examples: list[shape.Example] = []
    for _ in range(count):
        height, width = rng.uniform(8, 14), rng.uniform(14, 30)
        mask = ellipse(96, 48, 48, height, width)
        examples.append(shape.Example(shape.outline(mask), np.sqrt(mask.sum()) / 96, Place(0.3, 0.1)))
    return examples


def test_an_ellipse_has_its_size_its_axes_and_no_margin() -> None:
    found = shape.outline(ellipse(200, 100, 100, 30, 60))
    assert found.size == pytest.approx(np.sqrt(np.pi * 30 * 60), rel=0.01)
    np.testing.assert_allclose(found.stretch, [np.log(2), 0], atol=0.01)
    assert found.orientation == "parallel"
    assert found.roughness < 0.005
    assert shape.outline(ellipse(200, 100, 100, 60, 30)).orientation == "not parallel"


def test_roughness_is_the_amplitude_of_a_wavy_outline() -> None:
    for amplitude in (0.03, 0.08):
        found = shape.outline(star(256, 12, amplitude))
        assert found.roughness == pytest.approx(amplitude / np.sqrt(2), rel=0.15)
    assert shape.outline(star(256, 3, 0.08)).roughness < 0.01  # three lobes are no margin


def test_an_outline_renders_the_mask_it_was_read_from() -> None:
    for mask in (ellipse(128, 60, 60, 20, 33), star(128, 5, 0.1), star(128, 11, 0.05)):
        found = shape.outline(mask)
        again = shape.render(found.size, found.stretch, found.modes)
        assert deformation.overlap(again, mask) > 0.95
        assert again.sum() == pytest.approx(mask.sum(), rel=0.03)


def test_a_mirrored_mask_has_the_mirrored_outline() -> None:
    mask = ellipse(96, 40, 40, 10, 20) | ellipse(96, 50, 60, 12, 12)
    one, other = shape.outline(mask), shape.outline(mask[:, ::-1])
    np.testing.assert_allclose(one.stretch * [1, -1], other.stretch, atol=1e-9)
    np.testing.assert_allclose(np.abs(one.modes), np.abs(other.modes), atol=1e-6)


def test_a_drawn_shape_has_the_margin_and_orientation_asked_for() -> None:
    examples = ellipses(20)
    rough = [shape.outline(star(96, 12, amplitude)) for amplitude in np.linspace(0.03, 0.12, 20)]
    examples += [shape.Example(one, one.size / 96, Place(0.5, 0)) for one in rough]
    margins = shape.learn_margins([("benign", example.outline) for example in examples])
    model = shape.learn(examples, margins)
    rng = np.random.default_rng(0)
    for margin in shape.MARGINS:
        drawn = shape.draw(model, rng, margin, "parallel")
        assert drawn is not None
        assert margins.name(drawn.roughness) == margin
        assert drawn.stretch[0] >= 0
    flat = shape.learn(ellipses(20), margins)
    assert shape.draw(flat, rng, None, "not parallel") is None


def test_one_seed_draws_one_shape_and_another_another() -> None:
    model = shape.learn(ellipses(15), shape.Margins())
    masks = []
    for seed in (1, 1, 2):
        drawn = shape.draw(model, np.random.default_rng(seed))
        assert drawn is not None
        masks.append(shape.realise(drawn, 30).tobytes())
    assert masks[0] == masks[1] != masks[2]


def test_too_few_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"11 masks.*expected 12 or more"):
        shape.learn(ellipses(11), shape.Margins())
    with pytest.raises(ValueError, match="4 px; expected 9"):
        shape.outline(np.pad(np.ones((2, 2), np.bool_), 3))
    assert shape.learn_margins([]) == shape.Margins()


def test_margins_count_every_class_the_same() -> None:
    smooth, rough = shape.outline(star(128, 12, 0.01)), shape.outline(star(128, 12, 0.1))
    margins = shape.learn_margins([("benign", smooth)] * 90 + [("malignant", rough)] * 10)
    assert margins.name(smooth.roughness) == "circumscribed"
    assert margins.microlobulated >= rough.roughness


@pytest.mark.slow
@pytest.mark.skipif(not BUSI.is_dir(), reason="the shared BUSI scans are not here")
def test_drawn_shapes_are_distributed_as_busis_held_out_ones() -> None:
    rows: dict[str, list[tuple[shape.Outline, Place]]] = {"benign": [], "malignant": []}
    for scan in busi.read(busi.Params(dataset="busi", root=BUSI)):
        if scan.image is not None and scan.mask is not None and scan.mask.sum() > 200 and scan.label in rows:
            fitted = letterbox(scan.image, scan.mask, 128)
            assert fitted.mask is not None
            rows[scan.label].append((shape.outline(fitted.mask), place_of(fitted.image, fitted.mask)))
    for label, known in rows.items():
        learned, held = known[::2], known[1::2]
        model = shape.learn([shape.Example(one, one.size / 128, at) for one, at in learned], shape.Margins())
        rng = np.random.default_rng(1)
        drawn = [one for one in (shape.draw(model, rng) for _ in range(120)) if one is not None]
        made = [shape.outline(shape.realise(one, one.size * 128)) for one in drawn]
        for name, of in {
            "area": lambda one: one.size,
            "aspect": lambda one: one.stretch[0],
            "roughness": lambda one: one.roughness,
        }.items():
            p = ks_2samp([of(one) for one in made], [of(one) for one, _ in held]).pvalue
            assert p > 0.001, (label, name, p)
