"""Pictures simple enough for a judge to learn in seconds: speckle with a dark ellipse or a bright patch."""

import numpy as np
from scipy import ndimage

from tasks.quality.judge import Pictures


def pictures(count: int, seed: int, px: int = 64, labels: tuple[str, ...] = ("benign", "malignant")) -> Pictures:
    """`count` pictures, two a group, labels in turn. benign: dark and smooth; malignant: black above a shadow;
    normal: speckle alone."""
    images, masks = np.zeros((count, px, px), np.uint8), np.zeros((count, px, px), bool)
    names = [labels[row % len(labels)] for row in range(count)]
    y, x = np.mgrid[:px, :px] / px
    for row, label in enumerate(names):
        rng = np.random.default_rng([seed, row])
        level = 110 + 40 * ndimage.gaussian_filter(rng.normal(size=(px, px)), 6) * 6
        cy, cx = rng.uniform(0.35, 0.6), rng.uniform(0.3, 0.7)
        tall, wide = rng.uniform(0.1, 0.15), rng.uniform(0.15, 0.22)
        inside = ((y - cy) / tall) ** 2 + ((x - cx) / wide) ** 2 < 1
        if label == "malignant":
            level = np.where((np.abs(x - cx) < wide * 0.8) & (y > cy), level * 0.4, level)
        if label != "normal":
            level = np.where(inside, 45 if label == "benign" else 25, level)
            masks[row] = inside
        speckle = ndimage.gaussian_filter(rng.rayleigh(size=(px, px)), (0.5, 0.9)) / 1.25
        images[row] = np.clip(level * speckle, 0, 255)
    return Pictures(images, masks, names, [f"{seed}-{row // 2}" for row in range(count)])
