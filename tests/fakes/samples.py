"""Made-up rows of a dataset: speckle with an ellipse, in all verdicts, labels and splits."""

import numpy as np
import pyarrow as pa

from storage import images
from storage.records import sample_schema

SCORES = ["segmenter_dice", "lesion_contrast"]


def table(count: int, px: int = 32, seed: int = 0, only_kept: bool = False) -> pa.Table:
    """`count` rows with ids demo-000000 upwards; of the first six, all are kept. Normals have no mask."""
    rng = np.random.default_rng([seed, count, px])
    schema = sample_schema(SCORES)
    rows = [_row(index, px, rng, only_kept or index < 6) for index in range(count)]
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def _row(index: int, px: int, rng: np.random.Generator, surely_kept: bool) -> dict[str, object]:
    label = ("benign", "malignant", "normal")[index % 3]
    y, x = np.mgrid[:px, :px]
    radius = rng.uniform(px * 0.1, px * 0.25)
    centre = rng.uniform(px * 0.35, px * 0.65, 2)
    mask = ((y - centre[0]) / (0.7 * radius)) ** 2 + ((x - centre[1]) / radius) ** 2 < 1
    image = np.clip(rng.rayleigh(50, (px, px)), 0, 255).astype(np.uint8)
    if label != "normal":
        image = np.where(mask, image // 3, image)
    verdict = "kept" if surely_kept else ("kept", "kept", "rejected", "failed")[int(rng.integers(4))]
    reasons = {
        "kept": [],
        "rejected": ["segmenter_dice 0.31 < 0.50" if index % 2 else "lesion_contrast 0.10 < 0.30"],
        "failed": ["no place in the tissue for the mask"],
    }
    name = f"demo-{index:06d}"
    encoded = None if label == "normal" else {"bytes": images.encode_mask(mask), "path": f"{name}-mask.png"}
    return {
        "id": name,
        "image": {"bytes": images.encode_grey(image), "path": f"{name}.png"},
        "mask": encoded,
        "region": encoded,
        "label": label,
        "organ": "breast",
        "dataset": "phantom",
        "group": f"g{index // 3}",
        "split": ("train", "train", "val", "test")[index // 3 % 4],
        "pixel_mm": 0.1,
        "sha256": images.pixels_sha256(image),
        "background_id": f"phantom-{index:04d}",
        "background_kind": "real",
        "mask_id": f"mask-{index:04d}",
        "base_digest": "ab12cd34ef",
        "adapter_digest": "0f1e2d3c4b",
        "prompt": f"ultrasound of breast, {label}",
        "sampler": "dpmsolver++",
        "steps": 20,
        "guidance": 3.0,
        "seed": index,
        "candidates": 4,
        "critic": 0.5,
        "outside_changed_px": 0,
        "recipe_digest": "cafe",
        "licence": "Apache-2.0",
        "verdict": verdict,
        "reasons": reasons[verdict],
        "segmenter_dice": None if label == "normal" else float(rng.uniform(0.2, 0.5 if verdict == "rejected" else 1)),
        "lesion_contrast": None if verdict == "failed" else float(rng.gamma(4, 0.3)),
    }
