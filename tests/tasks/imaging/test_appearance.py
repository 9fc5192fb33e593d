"""Statistics of appearance on pictures whose answers are known."""

import numpy as np
import pytest
from scipy import ndimage

from tasks.imaging.appearance import compare, content, describe


def _speckle(sigma: tuple[float, float], seed: int = 0, px: int = 96) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((px, px)), sigma)
    return (120 + 25 * noise / noise.std()).clip(1, 255).astype(np.uint8)


def _lesion() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:96, :96]
    return _speckle((0.8, 0.8)), ((columns - 48) / 18) ** 2 + ((rows - 40) / 9) ** 2 <= 1


def test_speckle_that_is_wide_across_has_its_longer_half_width_there() -> None:
    found = describe(_speckle((0.5, 1.5)), None)
    assert found["texture: half width across, px"] > 1.5 * found["texture: half width down, px"]


def test_rayleigh_amplitude_has_the_signal_to_noise_ratio_of_theory() -> None:
    draws = np.random.default_rng(1).standard_normal((2, 128, 128))
    grey = ((20 * np.log10(np.hypot(*draws) + 1e-3) + 45) / 60 * 255).clip(0, 255).astype(np.uint8)
    found = describe(grey, None)
    assert found["speckle: amplitude SNR (60 dB)"] == pytest.approx(1.91, abs=0.25)
    assert found["speckle: Nakagami m (60 dB)"] == pytest.approx(1.0, abs=0.25)


def test_a_picture_that_darkens_downwards_has_that_slope() -> None:
    grey = np.repeat(np.linspace(200, 80, 96)[:, None], 96, 1).astype(np.uint8)
    assert describe(grey, None)["depth: slope, levels per height"] == pytest.approx(-120, abs=3)


def test_flat_layers_are_flat_and_upright_ones_are_not() -> None:
    bands = (128 + 60 * np.sin(np.arange(96) / 3))[:, None] + np.zeros((96, 96))
    flat, upright = (describe(grey.astype(np.uint8), None) for grey in (bands, bands.T))
    assert (
        flat["layers: flatness, -1 upright to 1 flat"] > 0.9 > -0.9 > upright["layers: flatness, -1 upright to 1 flat"]
    )
    assert flat["layers: coherence of the structure tensor"] > 0.9
    assert flat["layers: gradient of the lateral mean"] > 10 * upright["layers: gradient of the lateral mean"]


def test_a_dark_lesion_is_measured() -> None:
    image, mask = _lesion()
    image[mask] -= 70
    found = describe(image, mask)
    assert found["lesion: contrast, levels"] == pytest.approx(-70, abs=8)
    assert found["lesion: width over height"] == pytest.approx(37 / 19)
    assert found["lesion: share of the frame"] == pytest.approx(mask.mean())
    assert found["lesion: solidity"] > 0.9
    assert found["lesion: step at the outline, levels"] > 50


def test_brightness_behind_a_lesion_is_told_from_the_tissue_beside() -> None:
    image, mask = _lesion()
    image[50:, 30:67] += 30
    assert describe(image, mask)["lesion: behind against beside, levels"] == pytest.approx(30, abs=10)


def test_padding_does_not_count() -> None:
    image = _speckle((0.8, 0.8))
    padded = np.zeros((128, 128), np.uint8)
    padded[16:112, 16:112] = image
    assert content(padded) == (slice(16, 112), slice(16, 112))
    assert describe(padded, None) == describe(image, None)


def test_a_black_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="black"):
        describe(np.zeros((64, 64), np.uint8), None)


def test_a_shift_by_two_standard_deviations_measures_two() -> None:
    draws = np.random.default_rng(3).standard_normal((2, 400))
    rows = [[{"x": float(v)} for v in side] for side in (draws[0] + 2, draws[1])]
    (found,) = compare(*rows)
    assert found.distance == pytest.approx(2, abs=0.2)
    assert found.low < found.distance < found.high
    assert not found.covered


def test_few_pictures_are_not_compared() -> None:
    assert compare([{"x": 1.0}] * 7, [{"x": 1.0}] * 50) == []
