"""Segment Anything, fine-tuned for the utility study: encoders frozen, mask decoder trained, one box a picture.

Boxes at the test come from the arm's own U-Net, as they would in use, or from the true masks, as in much of the
literature (Wang et al., arXiv 2506.23664): the latter tell the network where to draw and how large.

Source: Kirillov et al., Segment Anything, 2023; weights in transformers' layout, as `facebook/sam-vit-base`.
"""

import hashlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import storage.weights
from tasks.imaging import Grey, Mask
from tasks.quality import downstream
from tasks.quality.judge import Pictures

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import SamModel

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, px; the last two exclusive."""
LAYOUT = storage.weights.Layout(
    kind="SAM",
    expected="a folder in transformers' layout, as facebook/sam-vit-base: config.json, model.safetensors",
    models={"": ("model", "SamModel")},
)
RANDOM = "random"
"""Instead of weights: a small model of SAM's architecture that has seen nothing, in the place of one that has."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the encoder's training images, RGB, 0..1
_READING = threading.Lock()  # two threads that read a model at once get tensors without data
_BATCH = 4  # images that are encoded at once
_WIDTH = 128  # channels of the small model with random weights


class Params(downstream.Params):
    """How SAM's mask decoder is trained in every arm. Its classical augmentation is the mirror image: the encoder
    sees each picture once or twice, not at every step."""

    weights: str = Field(
        description="Folder with config.json and model.safetensors in transformers' layout, fsspec URL or hub id, as "
        "facebook/sam-vit-base; random: a small model of that architecture whose weights are random"
    )
    steps: int = Field(default=400, ge=2, le=1_000_000, description="optimizer steps, the same in every arm")
    batch: int = Field(default=4, ge=2, le=1024, description="images a step")
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="peak learning rate")
    prompt: Literal["unet", "truth"] = Field(
        default="unet", description="boxes at the test: around what the trial's U-Net drew, or around the true mask"
    )
    jitter: float = Field(
        default=0.08, ge=0, le=0.5, description="a box's sides lie up to so much of the image outside the mask"
    )


def title(params: Params) -> str:
    """How tables and pages call the network: never SAM alone where weights are random or boxes are given away."""
    about = ["random weights"] if params.weights == RANDOM else []
    about += ["boxes from the ground truth"] if params.prompt == "truth" else []
    return f"SAM ({', '.join(about)})" if about else "SAM"


def described(params: Params) -> str:
    """Which network it is and where its boxes come from, in one sentence."""
    boxes = {
        "unet": "boxes at the test are those of the same training's U-Net",
        "truth": "boxes at the test are those of the true masks, which tell it where to draw and how large",
    }[params.prompt]
    weights = (
        "a small model of SAM's architecture with random weights"
        if params.weights == RANDOM
        else f"the weights of {params.weights.rstrip('/').rsplit('/', 1)[-1]}"
    )
    return f"{title(params)}: {weights} (sha256 {digest(params.weights)[:12]}), mask decoder trained alone; {boxes}"


def digest(weights: str) -> str:
    """sha256 of the weights.

    Raises:
        ValueError: there are none.
    """
    if weights == RANDOM:
        drawn = load(RANDOM).state_dict()
        return hashlib.sha256(b"".join(drawn[name].cpu().numpy().tobytes() for name in sorted(drawn))).hexdigest()
    return storage.weights.digest(storage.weights.locate(weights, LAYOUT), LAYOUT)


def load(weights: str) -> "SamModel":
    """The model in evaluation mode, on the GPU where there is one.

    Raises:
        ValueError: there are no weights, or they are another architecture's.
    """
    from transformers import SamModel

    from tasks.quality import fitting

    if weights == RANDOM:
        with _READING:
            return _random().to(fitting.device())
    folder = storage.weights.locate(weights, LAYOUT)
    with _READING:
        variant = storage.weights.variant(folder, "model")
        model, found = cast(Any, SamModel).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, variant=variant, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{weights} lacks {len(missing)} of SAM's weights, {missing[0]} among them")
    return model.eval().to(fitting.device())


def _random() -> Any:
    """SAM's architecture, small: 128 px in patches of 8, masks of 64 px; all weights drawn from one seed.

    Patches know their place by the same Fourier features as prompts, of low frequency: with noise for both, as an
    untrained model has, the decoder learns no more of a box than the pixels at its corners.
    """
    import torch
    from transformers import SamConfig, SamModel

    from tasks.quality import fitting

    size: dict[str, Any] = {"hidden_size": _WIDTH, "image_size": 128, "patch_size": 8}
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 2 * _WIDTH}
    seen = {"output_channels": _WIDTH, "window_size": 8, "global_attn_indexes": [1], "num_pos_feats": _WIDTH // 2}
    config = SamConfig(
        vision_config=size | layers | seen,
        prompt_encoder_config=size | {"mask_input_channels": 16},
        mask_decoder_config=layers | {"hidden_size": _WIDTH, "iou_head_hidden_dim": _WIDTH},
    )
    model: Any = fitting.initialise(lambda: SamModel(config), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.shared_image_embedding.positional_embedding.normal_(0, 0.5, generator=generator)
        for corner in model.prompt_encoder.point_embed:
            corner.weight.normal_(0, 1, generator=generator)
        places = model.get_image_wide_positional_embeddings().permute(0, 2, 3, 1)
        model.vision_encoder.pos_embed.copy_(0.3 * places)
    return model.eval()


def train(
    model: "SamModel",
    examples: Pictures,
    params: Params,
    seed: int,
    *,
    first: Pictures | None = None,
    turns: NDArray[np.intp] | None = None,
    augmented: bool = True,
) -> "SamModel":
    """`model` with a mask decoder trained on the `examples` with a mask, after those that come `first`. Examples of
    different numbers in `turns` are equally likely in a batch, however few.

    In memory are the embeddings of the pictures, and of their mirror images where `augmented`: 2 MB each in ViT-B.

    Raises:
        ValueError: no example has a mask.
    """
    from torch.nn import functional as F

    from tasks.quality import fitting

    taught = [pictures for pictures in (first, examples) if pictures is not None]
    drawn = [pictures.select(np.flatnonzero(pictures.masks.any((1, 2)))) for pictures in taught]
    if not all(len(pictures) for pictures in drawn):
        raise ValueError(f"all {len(examples)} masks are blank; a segmenter needs some to learn from")
    lessons: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    images, masks, start = list[Grey](), list[Mask](), 0
    for pictures in drawn:
        for mirrored in (False, True)[: 1 + augmented]:
            images.append(pictures.images[:, :, ::-1] if mirrored else pictures.images)
            masks.append(pictures.masks[:, :, ::-1] if mirrored else pictures.masks)
        count = len(pictures) * (1 + augmented)
        lessons.append((np.arange(start, start + count), np.zeros(count, np.intp)))
        start += count
    if turns is not None:
        lessons[-1] = (lessons[-1][0], np.tile(turns[examples.masks.any((1, 2))], 1 + augmented))
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
