"""Segment Anything, fine-tuned for the utility study: encoders frozen, mask decoder trained, one box a lesion.

Boxes at the test come from the arm's own U-Net, as they would in use, or from the true masks, as in much of the
literature (Wang et al., arXiv 2506.23664): the latter tell the network where the lesion is and how large.

Source: Kirillov et al., Segment Anything, 2023; weights in transformers' layout, as `facebook/sam-vit-base`.
"""

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.imaging import Grey, Mask
from tasks.quality import downstream
from tasks.quality.judge import Pictures

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import SamModel

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, px; the last two exclusive."""
WEIGHTS = "model.safetensors"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the encoder's training images, RGB, 0..1
_READING = threading.Lock()  # two threads that read a model at once get tensors without data
_BATCH = 4  # images that are encoded at once


class Params(downstream.Params):
    """How SAM's mask decoder is trained in every arm. Its classical augmentation is the mirror image: the encoder
    sees each picture once or twice, not at every step."""

    weights: Path = Field(description="Folder with config.json and model.safetensors, in transformers' layout")
    steps: int = Field(default=400, ge=2, le=1_000_000, description="optimizer steps, the same in every arm")
    batch: int = Field(default=4, ge=2, le=1024, description="images a step")
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="peak learning rate")
    prompt: Literal["unet", "truth"] = Field(
        default="unet", description="boxes at the test: around what the trial's U-Net drew, or around the true mask"
    )
    jitter: float = Field(
        default=0.08, ge=0, le=0.5, description="a box's sides lie up to so much of the image outside the mask"
    )


def digest(weights: Path) -> str:
    """sha256 of the weights.

    Raises:
        ValueError: there are none in the folder.
    """
    file = weights / WEIGHTS
    if not file.is_file():
        found = sorted(path.name for path in weights.iterdir())[:5] if weights.is_dir() else "no folder"
        raise ValueError(f"SAM's weights: expected config.json and {WEIGHTS} in {weights}, found {found}")
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load(weights: Path) -> "SamModel":
    """The model of a folder, in evaluation mode."""
    from transformers import SamModel

    digest(weights)
    with _READING:
        return SamModel.from_pretrained(weights, local_files_only=True, use_safetensors=True).eval()


def train(
    model: "SamModel",
    examples: Pictures,
    params: Params,
    seed: int,
    *,
    first: Pictures | None = None,
    augmented: bool = True,
) -> "SamModel":
    """`model` with a mask decoder trained on the lesions of `examples`, after those that come `first`.

    In memory are the embeddings of the lesions, and of their mirror images where `augmented`: 2 MB each in ViT-B.

    Raises:
        ValueError: no example has a mask.
    """
    from torch.nn import functional as F

    from tasks.quality import fitting

    taught = [pictures for pictures in (first, examples) if pictures is not None]
    drawn = [pictures.select(np.flatnonzero(pictures.masks.any((1, 2)))) for pictures in taught]
    if not all(len(pictures) for pictures in drawn):
        raise ValueError(f"all {len(examples)} masks are blank; a segmenter needs lesions to learn from")
    lessons: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    images, masks, start = list[Grey](), list[Mask](), 0
    for pictures in drawn:
        for mirrored in (False, True)[: 1 + augmented]:
            images.append(pictures.images[:, :, ::-1] if mirrored else pictures.images)
            masks.append(pictures.masks[:, :, ::-1] if mirrored else pictures.masks)
        count = len(pictures) * (1 + augmented)
        lessons.append((np.arange(start, start + count), np.zeros(count, np.intp)))
        start += count
    everything, outlines = np.concatenate(images), np.concatenate(masks)
    embedded = embed(model, everything, params)
    tight = [box_of(mask) for mask in outlines]
    side = 4 * embedded.shape[-1]  # of the masks that the decoder draws
    wanted = fitting.to_mask_tensor(outlines, side).to(model.device)

    def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
        boxes = [jittered(tight[row], outlines.shape[1:], params.jitter, rng) for row in rows]
        logits = _logits(model, embedded[rows], boxes, outlines.shape[1:])
        truth, soft = wanted[rows], logits.sigmoid()
        overlap = (2 * (soft * truth).sum((1, 2, 3)) + 1) / (soft.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1)
        return (1 - overlap).mean() + F.binary_cross_entropy_with_logits(logits, truth)

    learned = downstream.learn(model.mask_decoder, loss_of, lessons, params, seed)
    model.mask_decoder.load_state_dict(learned.state_dict())
    return model.eval()


def draw(model: "SamModel", images: Grey, boxes: Sequence[Box], params: Params) -> Mask:
    """What the model draws in each box of images (n, h, w)."""
    import torch
    from torch.nn import functional as F

    found = np.zeros(images.shape, np.bool_)
    for at in range(0, len(images), _BATCH):
        part = slice(at, at + _BATCH)
        with torch.inference_mode():
            logits = _logits(model, embed(model, images[part], params), boxes[part], images.shape[1:])
            full = F.interpolate(logits, size=images.shape[1:], mode="bilinear", align_corners=False)
        found[part] = (full[:, 0] > 0).cpu().numpy()
    return found


def embed(model: "SamModel", images: Grey, params: Params) -> "Tensor":
    """What the frozen encoder sees in images (n, h, w), half precision, on the CPU: (n, channels, grid, grid)."""
    import torch

    from tasks.quality import fitting

    px = _side(model)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    parts: list[Tensor] = []
    for at in range(0, len(images), _BATCH):
        pixels = fitting.to_tensor(images[at : at + _BATCH], px)
        seen = ((pixels - mean) / std).to(model.device)
        with torch.inference_mode(), torch.autocast(seen.device.type, torch.bfloat16, params.precision == "bf16"):
            parts.append(model.get_image_embeddings(seen).half().cpu())
    return torch.cat(parts)


def box_of(mask: Mask) -> Box:
    """The box around what `mask` covers."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def jittered(box: Box, shape: Sequence[int], jitter: float, rng: np.random.Generator) -> Box:
    """The box with each side moved outwards by up to `jitter` of the image's side, within the image of `shape`."""
    height, width = shape
    left, top, right, bottom = (round(more * side) for more, side in zip(
        rng.uniform(0, jitter, 4), (width, height, width, height), strict=True))  # fmt: skip
    return max(0, box[0] - left), max(0, box[1] - top), min(width, box[2] + right), min(height, box[3] + bottom)


def _side(model: "SamModel") -> int:
    """Side of the square that the encoder sees, px."""
    return int(cast(Any, model.config).vision_config.image_size)


def _logits(model: "SamModel", embedded: "Tensor", boxes: Sequence[Box], shape: Sequence[int]) -> "Tensor":
    """Masks (n, 1, side, side) before the sigmoid; `shape` is the (height, width) that boxes are in."""
    import torch

    height, width = shape
    px = _side(model)
    scale = torch.tensor([px / width, px / height, px / width, px / height])
    corners = (torch.tensor(boxes, dtype=torch.float32) * scale)[:, None].to(model.device)
    seen = embedded.float().to(model.device)
    return model(image_embeddings=seen, input_boxes=corners, multimask_output=False).pred_masks[:, 0].float()
