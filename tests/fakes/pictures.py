"""Grey pictures that look enough like ultrasound for adapters and screening: speckle, layers, a dark lesion."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage


def picture(seed, shape=(120, 150), lesion=True):
    """(image uint8, mask bool): every seed has its own speckle."""
    rng = np.random.default_rng([7, seed])
    height, width = shape
    speckle = np.abs(ndimage.gaussian_filter(rng.normal(size=shape), (1.2, 1.8)))
    layers = ndimage.gaussian_filter(rng.normal(size=shape), (4, 20))
    tissue = 70 + 500 * speckle / 2 + 400 * layers
    mask = np.zeros(shape, bool)
    if lesion:
        y, x = np.indices(shape)
        cy, cx = height * rng.uniform(0.4, 0.6), width * rng.uniform(0.35, 0.65)
        mask = ((y - cy) / (height * 0.14)) ** 2 + ((x - cx) / (width * 0.18)) ** 2 < 1
        tissue = np.where(mask, tissue * 0.35, tissue)
    return np.clip(tissue, 0, 255).astype(np.uint8), mask


def with_calipers(image):
    """The picture with two caliper crosses and a line of text, as a scanner burns them in."""
    drawn = Image.fromarray(image)
    draw = ImageDraw.Draw(drawn)
    height, width = image.shape
    for x, y in ((width // 3, height // 2), (2 * width // 3, height // 2)):
        draw.line((x - 7, y, x + 7, y), fill=226, width=2)
        draw.line((x, y - 7, x, y + 7), fill=226, width=2)
    return np.asarray(drawn)


def save(path, pixels):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
