"""BUS-UCLM's layout: colour-coded masks, a table with semicolons and a byte-order mark."""

from pathlib import Path

import numpy as np

from tests.fakes.pictures import picture, save

PATIENTS = ("ABCD", "EFGH", "IJKL")


def busuclm(root, n=2, shape=(120, 150), seed=0):
    """`n` frames of each of three patients, who are normal, benign and malignant. Returns the root."""
    root = Path(root)
    rows = ["Image;Resolution;Label;Doppler;Marks;Combined"]
    for place, (patient, label) in enumerate(zip(PATIENTS, ("Normal", "Benign", "Malignant"), strict=True)):
        for k in range(n):
            image, mask = picture(seed * 1000 + 600 + place * 20 + k, shape, lesion=label != "Normal")
            colours = np.zeros((*shape, 3), np.uint8)
            colours[mask, 1 if label == "Benign" else 0] = 255
            name = f"{patient}_{k:03d}.png"
            save(root / "images" / name, np.stack([image] * 3, axis=-1))
            save(root / "masks" / name, colours)
            rows.append(f"{name};{shape[1]}x{shape[0]};{label};No;No;No")
    (root / "INFO.csv").write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    return root
