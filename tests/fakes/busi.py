"""BUSI's layout: label folders, names with spaces and parentheses, blank masks for normals."""

from pathlib import Path

from tests.fakes.pictures import picture, save


def busi(root, n=4, shape=(120, 150), seed=0):
    """`n` images of each label; `benign (2)` has two masks where n allows it. Returns the root."""
    root = Path(root)
    for place, label in enumerate(("benign", "malignant", "normal")):
        for k in range(1, n + 1):
            image, mask = picture(seed * 1000 + place * 100 + k, shape, lesion=label != "normal")
            save(root / label / f"{label} ({k}).png", image)
            if label == "benign" and k == 2:
                left = mask.copy()
                left[:, shape[1] // 2 :] = False
                save(root / label / f"{label} ({k})_mask.png", left)
                save(root / label / f"{label} ({k})_mask_1.png", mask & ~left)
            else:
                save(root / label / f"{label} ({k})_mask.png", mask)
    return root
