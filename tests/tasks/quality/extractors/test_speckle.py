import numpy as np
import pytest
from scipy import ndimage

from tasks.quality.extractors import speckle
from tests.tasks.quality.toys import pictures

COLUMN = {name: place for place, name in enumerate(speckle.NAMES)}


def shown(envelope, levels_per_neper=20.0, gain=120.0):
    """Grey levels of an envelope as a scanner shows it."""
    return np.clip(np.round(gain + levels_per_neper * np.log(envelope)), 0, 255).astype(np.uint8)


def complex_noise(count, px, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, px, px)) + 1j * rng.normal(size=(count, px, px))


def of(images, name):
    return speckle.WHOLE.features(images)[:, COLUMN[name]]


@pytest.mark.parametrize("levels", [12, 20, 30])
def test_the_compression_of_rayleigh_speckle_is_found_whatever_the_gain(levels):
    for gain in (90, 140):
        found = np.exp(of(shown(np.abs(complex_noise(3, 128)), levels, gain), "log_levels_per_neper"))
        assert found == pytest.approx(levels, rel=0.05)


def test_rayleigh_speckle_has_the_published_statistics():
    images = shown(np.abs(complex_noise(4, 128)))
    assert of(images, "signal_to_noise") == pytest.approx(1.91, abs=0.05)
    assert np.exp(of(images, "log_nakagami_m")) == pytest.approx(1, abs=0.1)
    assert of(images, "rayleigh_distance").max() < 0.12


def test_other_laws_are_told_from_rayleighs():
    """Few scatterers (an envelope of Nakagami's law, m = 0.3) and the mean of four looks at the same scatterers."""
    rng = np.random.default_rng(1)
    sparse = np.sqrt(rng.gamma(0.3, 1 / 0.3, (4, 128, 128))) + 1e-2
    averaged = np.mean([np.abs(complex_noise(4, 128, seed)) for seed in range(4)], axis=0)
    usual = of(shown(np.abs(complex_noise(4, 128))), "rayleigh_distance")
    for envelope, gain in ((sparse, 120), (averaged, 60)):
        found = of(shown(envelope, gain=gain), "rayleigh_distance")
        assert found.min() > usual.max() + 0.01


@pytest.mark.parametrize(("down", "across"), [(0.8, 1.6), (1.2, 1.2), (1.6, 0.8)])
def test_the_grain_is_as_wide_as_it_was_made(down, across):
    """White noise through known filters: the autocorrelation is that of the filters' answer to one point."""
    noise = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(6, 160, 160)), (0, down, across))
    levels = np.clip(120 + 30 * noise / noise.std(), 0, 255).astype(np.uint8)
    found = speckle.widths(speckle.roughness(levels), np.ones(levels.shape, bool))
    point = np.zeros((65, 65))
    point[32, 32] = 1
    answer = ndimage.gaussian_filter(point, (down, across))
    answer -= ndimage.uniform_filter(answer, 9)
    correlation = np.fft.ifft2(np.abs(np.fft.fft2(answer)) ** 2).real
    for got, line in zip(found, (correlation[:9, 0], correlation[0, :9]), strict=True):
        after = int((line < line[0] / 2).argmax())
        expected = np.interp(line[0] / 2, line[after : after - 2 : -1], [after, after - 1])
        assert got.mean() == pytest.approx(expected, rel=0.03)


def test_blurred_grain_falls_off_faster_and_lacks_the_fine_part():
    noise = np.random.default_rng(3).normal(size=(4, 128, 128))
    plain, blurred = (
        np.clip(120 + 30 * image / image.std(), 0, 255).astype(np.uint8)
        for image in (noise, ndimage.gaussian_filter(noise, (0, 1.2, 1.2)))
    )
    assert (of(blurred, "spectral_slope") < of(plain, "spectral_slope") - 1).all()
    assert (of(blurred, "fine_share") < of(plain, "fine_share") - 0.5).all()
    assert of(plain, "spectral_slope") == pytest.approx(0.2, abs=0.3)  # white, but for what the mean takes


def test_the_lesion_has_its_own_grain():
    toys = pictures(6, 0, px=128)
    swapped = toys.images.copy()
    noise = np.random.default_rng(4).normal(50, 12, swapped.shape).clip(0, 255).astype(np.uint8)
    swapped[toys.masks] = noise[toys.masks]
    before, after = (speckle.features(images, toys.masks) for images in (toys.images, swapped))
    assert (before[:, 8:] != after[:, 8:]).any(axis=1).all()
    assert (np.abs(after - before)[:, 8:].max(axis=1) > np.abs(after - before)[:, :8].max(axis=1)).all()
    blank = speckle.features(toys.images, np.zeros_like(toys.masks))
    assert (blank[:, 8:] == blank[:, :6]).all()
    assert (speckle.features(toys.images, None) == blank[:, :8]).all()
