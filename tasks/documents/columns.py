"""What each column of a published row means: the one place that says so, for people and for machines."""

from collections.abc import Mapping

COLUMNS: Mapping[str, str] = {
    "id": "unique in the dataset",
    "image": "8-bit grey PNG",
    "mask": "1-bit PNG of the lesion or head; what was drawn into or, if `mask_kind` is drawn, with the picture",
    "region": "1-bit PNG of the declared region, outside it, the image equals its background bit for bit",
    "background": "8-bit grey PNG of the background where that is synthetic; absent else",
    "label": "what it shows",
    "organ": "breast or fetal head",
    "dataset": "source of its background or, of pictures drawn whole, of what the model learned from",
    "file": "file of the source",
    "group": "patient, exam or near-duplicate cluster it descends from, its own if from none: the unit of every split",
    "split": "train, val or test, by group",
    "pixel_mm": "millimetres per pixel, where known",
    "head_circumference_mm": "of a head's mask: circumference of its ellipse, where the pixel size is known",
    "sha256": "digest of shape and pixels of the image",
    "background_id": "the scan that its background is, or was redrawn from; absent where the picture was drawn whole",
    "background_kind": "real, simulated or synthetic; absent where the picture was drawn whole",
    "background_strength": "of a synthetic background: share of the scan that was redrawn",
    "background_similarity": "of a synthetic background: likeness to its scan, -1 to 1",
    "mask_id": "the scan whose mask its own was derived from or, of a model's, the nearest one",
    "mask_kind": "donor (a real outline deformed), model (of outlines), ellipse (a head), drawn (with the picture)",
    "margin": "circumscribed, microlobulated or spiculated, measured on the mask (BI-RADS terms)",
    "orientation": "parallel or not parallel, measured on the mask (BI-RADS terms)",
    "base_digest": "sha256 of the base model",
    "adapter_digest": "sha256 of the LoRA adapter that drew it",
    "controlnet_digest": "sha256 of the ControlNet that held the picture to its mask; absent where none did",
    "harmonizer_digest": "sha256 of the adapter that repaired seams; absent where the label's own did",
    "decoder_digest": "sha256 of the tuned decoder; absent where the base's own decoded",
    "levels_id": "the scan whose lesion's grey levels it was given; absent where they are as drawn",
    "prompt": "what the base was asked for",
    "sampler": "how it was sampled",
    "steps": "denoising steps",
    "guidance": "classifier-free guidance",
    "seed": "of this sample: the same seed makes the same picture",
    "candidates": "pictures drawn, of which one was kept: by the critic, or the first whose mask could be a head",
    "critic": "the critic's score of the one that was kept",
    "outside_changed_px": "pixels outside the declared region that differ from the background",
    "recipe_digest": "sha256 of the recipe",
    "licence": "terms of the row, combined from those of all its sources",
    "verdict": "kept, rejected or failed (of a source scan: kept or set aside)",
    "reasons": "why it was rejected, failed or set aside",
}


def meaning(column: str) -> str:
    """One line about a column; every other one is a score of the picture."""
    return COLUMNS.get(column, f"score of the picture: {column.replace('_', ' ')}; absent where it does not apply")
