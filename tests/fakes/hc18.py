"""HC18's layout: thin ellipse outlines, a table of pixel sizes, further frames of one exam."""

from pathlib import Path

import numpy as np

from tests.fakes.pictures import picture, save


def ellipse(shape, centre, axes, angle=0.3):
    """Filled ellipse; `centre` (y, x) and half `axes` in px."""
    y, x = np.indices(shape)
    y, x = y - centre[0], x - centre[1]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (u / axes[0]) ** 2 + (v / axes[1]) ** 2 < 1


def outline(shape, centre, axes, angle=0.3):
    """Outline 3 px wide around the same ellipse."""
    outer = ellipse(shape, centre, (axes[0] + 1.5, axes[1] + 1.5), angle)
    return outer & ~ellipse(shape, centre, (axes[0] - 1.5, axes[1] - 1.5), angle)


def hc18(root, n=3, shape=(135, 200), seed=0):
    """`n` exams, the first with a second frame, the last cut off at the upper border. Returns the root."""
    root = Path(root)
    rows = ["filename,pixel size(mm),head circumference (mm)"]
    names = [f"{k:03d}_HC" for k in range(n)] + ["000_2HC"]
    for k, name in enumerate(names):
        image, _ = picture(seed * 1000 + 500 + k, shape, lesion=False)
        centre = (shape[0] * (0.3 if k == n - 1 else 0.5), shape[1] * 0.5)
        drawn = outline(shape, centre, (shape[1] * 0.3, shape[0] * 0.36)) * np.uint8(255)
        save(root / "training_set" / f"{name}.png", image)
        save(root / "training_set" / f"{name}_Annotation.png", drawn)
        rows.append(f"{name}.png,0.{12 + k},180.5")
    (root / "training_set_pixel_size_and_HC.csv").write_text("\n".join(rows) + "\n")
    return root
