"""BUS-BRA's layout: two views a case, a clinical table, official folds."""

from pathlib import Path

from tests.fakes.pictures import picture, save


def busbra(root, n=5, shape=(120, 150), seed=0):
    """`n` cases of two views, every third malignant, in folds 1 to 5. Returns the root."""
    root = Path(root)
    table = ["ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX"]
    folds = ["ID,Pathology,kFold"]
    for case in range(1, n + 1):
        label = "malignant" if case % 3 == 0 else "benign"
        for place, view in enumerate("lr"):
            image, mask = picture(seed * 1000 + 700 + case * 2 + place, shape)
            save(root / "Images" / f"bus_{case:04d}-{view}.png", image)
            save(root / "Masks" / f"mask_{case:04d}-{view}.png", mask)
            table.append(f'bus_{case:04d}-{view},{case},x,{label},3,GE,150,120,left,"[1,2,3,4]"')
            folds.append(f"bus_{case:04d}-{view},{label},{(case - 1) % 5 + 1}")
    (root / "bus_data.csv").write_text("\n".join(table) + "\n")
    (root / "5-fold-cv.csv").write_text("\n".join(folds) + "\n")
    return root
