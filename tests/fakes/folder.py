"""The layout of one's own scans: images/, masks/ and a table."""

from pathlib import Path

from tests.fakes.pictures import picture, save


def folder(root, n=3, shape=(120, 150), seed=0):
    """`n` images each of normal, benign and malignant, with groups and pixel sizes. Returns the root."""
    root = Path(root)
    rows = ["file,label,group,pixel_mm"]
    for place, label in enumerate(("normal", "benign", "malignant")):
        for k in range(n):
            image, mask = picture(seed * 1000 + 800 + place * 20 + k, shape, lesion=label != "normal")
            name = f"{label}-{k}.png"
            save(root / "images" / name, image)
            if label != "normal":
                save(root / "masks" / name, mask)
            rows.append(f"{name},{label},patient-{place}-{k},0.1")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root
