"""Images per second of the staged route against plain diffusers, at which quality, and how near to the machine's limit.

Both sides have the same base, the same adapter, the same backgrounds and the same lesion masks, and run in turns.

- Ours: layout, lesion, harmonize and levels as `STAGES` says, with a critic that picks among candidates.
- Plain diffusers: `StableDiffusionInpaintPipeline` draws the lesion and then repairs its surroundings at our
  strength, as Wen et al. (JMI 13(2) 024002, 2026) do with the same pipeline; its own scheduler, 50 steps, guidance
  7.5, fp32, the adapter by `load_lora_weights`, one image at a time. Its image-to-image pipeline does not read the
  9 channels of an inpainting UNet. Masks come for free: they are placed before the clock starts.

    python -m benchmarks.synthesis --quick
    python -m benchmarks.synthesis --data /data/Dataset_BUSI_with_GT
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import safetensors.torch
import torch
from diffusers import StableDiffusionInpaintPipeline
from numpy.typing import NDArray
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from benchmarks.ratios import Ratio, main, paired
from storage.records import Scan
from tasks.imaging import dilate, letterbox
from tasks.quality import critic, features
from tasks.quality.judge import Pictures
from tasks.quality.kernel import kernel_distance
from tasks.sources import busi, phantom
from tasks.synthesis import Donor, Draft, StageParams, Tools, apply, harmonize, layout, lesion, levels, posterior
from tasks.synthesis.diffusion import adapters, latents, lora, window
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.redraw import composite
from tasks.synthesis.tissue import outside_picture

LABEL = "malignant"
STAGES: list[StageParams] = [
    layout.Params(),
    lesion.Params(steps=6, spacing="karras", guidance_from=0.4, candidates=2, early=0.5, precision="bf16"),
    harmonize.Params(steps=6, posterior="learned", precision="bf16"),
    levels.Params(),
]
PLAIN_STEPS, PLAIN_GUIDANCE = 50, 7.5
BATCH = 16  # as many as one call of the UNet takes, so no row is there to fill up a batch
EXTRACTOR = Path(__file__).resolve().parents[1] / "models" / "extractor"


@dataclass(frozen=True)
class Setting:
    """What both sides work with: healthy scans to draw into, an adapter, lesions that nothing was trained on."""

    healthy: list[Scan]
    held_out: NDArray[np.uint8]
    tools: Tools


@dataclass(frozen=True)
class Turn:
    """One turn of both sides: seconds an image, and the images."""

    ours_seconds: float
    plain_seconds: float
    ours: list[NDArray[np.uint8]]
    plain: list[NDArray[np.uint8]]


def measure(data: Path | None, quick: bool) -> list[Ratio]:
    setting = prepare(data, quick)
    plain = plain_pipeline(setting)
    drawn_by_both, turns = (4, 3) if quick else (8, 5)
    staged(setting, drafts(setting, 0, 1))  # both sides once before the clock: kernels choose their ways
    drawn_plainly(plain, setting, placed(setting, drafts(setting, 0, 1)), steps=4)

    done = [turn(setting, plain, 1 + number * BATCH, drawn_by_both) for number in range(turns)]
    flops = route_flops(setting)
    peaks = [matmul_flops(torch.bfloat16) for _ in range(turns)]
    speed = [one.plain_seconds / one.ours_seconds for one in done]
    used = [flops / one.ours_seconds / peak for one, peak in zip(done, peaks, strict=True)]
    ours, theirs = median(1 / one.ours_seconds for one in done), median(1 / one.plain_seconds for one in done)
    return [
        paired(f"images/s, staged ({ours:.2g}) / plain diffusers ({theirs:.2g})", 10, speed),
        worse_by(setting, done),
        paired("FLOP/s of the UNet / of matrix multiplication, bf16", 0.5, [unet_share(setting) for _ in range(turns)]),
        paired("FLOP/s of the whole route / of matrix multiplication, bf16", None, used),
    ]


def prepare(data: Path | None, quick: bool) -> Setting:
    """Scans of even groups are trained on, the others are held out."""
    base = bases.load("embedded")
    source = (
        phantom.read(phantom.Params(count=160 if quick else 480)) if data is None else busi.read(busi.Params(root=data))
    )
    scans = [fitted(scan, base.px) for scan in source if scan.image is not None]
    groups = sorted({group_of(scan) for scan in scans})
    trained = {group for place, group in enumerate(groups) if place % 2 == 0}
    lesions = [scan for scan in scans if scan.label == LABEL and scan.mask is not None and scan.mask.any()]
    known = [scan for scan in lesions if group_of(scan) in trained]
    held_out = [scan for scan in lesions if group_of(scan) not in trained]
    healthy = [scan for scan in scans if scan.label == "normal" and group_of(scan) in trained]
    donors = [donor(image_of(scan), scan.mask, scan.file, group_of(scan)) for scan in known if scan.mask is not None]
    tools = Tools(base=base, adapters={LABEL: adapter(base, known, quick)}, donors=donors, critic=judge(known, quick))
    return Setting(healthy, np.stack([image_of(scan) for scan in held_out]), replace(tools, batch=BATCH))


def donor(image: NDArray[np.uint8], mask: NDArray[np.bool_], name: str, group: str) -> Donor:
    behind = posterior.behind(image, mask, ~outside_picture(image))
    return Donor(name, mask, LABEL, group, behind=behind, image=image)


def fitted(scan: Scan, px: int) -> Scan:
    """The scan as the model's square."""
    if image_of(scan).shape == (px, px):
        return scan
    square = letterbox(image_of(scan), scan.mask, px)
    return replace(scan, image=square.image, mask=square.mask)


def adapter(base: bases.Base, known: Sequence[Scan], quick: bool) -> bytes:
    examples = [lora.Example(image_of(scan), scan.mask, LABEL) for scan in known]
    params = lora.LoraParams(steps=24 if quick else 300, warmup=4, learning_rate=2e-3, validate_every=1000)
    return lora.train(base, examples, [], "breast", params, 0, Nowhere(), lambda done: None).weights


class Nowhere:
    """Checkpoints of a run that nobody resumes."""

    def save(self, step: int, data: bytes) -> None:
        """Forget it."""

    def latest(self) -> None:
        """Nothing was kept."""


def judge(known: Sequence[Scan], quick: bool) -> Callable[..., NDArray[np.floating]]:
    """A critic that has learnt real lesions against planted failures."""
    masks = np.stack([scan.mask for scan in known if scan.mask is not None])
    images = np.stack([image_of(scan) for scan in known])
    real = Pictures(images, masks, [LABEL] * len(known), [group_of(scan) for scan in known])
    fake = critic.imitations(real, 0)
    trained = critic.train(real, fake, (real, fake), critic.Params(steps=30 if quick else 300), 0)
    loaded = critic.load(trained.weights)
    return lambda images, masks, labels: loaded.realism(images, masks)


def plain_pipeline(setting: Setting) -> StableDiffusionInpaintPipeline:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(setting.tools.base.path, safety_checker=None)
    pipe.load_lora_weights(safetensors.torch.load(setting.tools.adapters[LABEL]))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drafts(setting: Setting, first: int, count: int) -> list[Draft]:
    """Samples `first` and after: each in one of the healthy scans."""
    chosen = [setting.healthy[index % len(setting.healthy)] for index in range(first, first + count)]
    return [
        Draft(
            id=f"{index}",
            seed=index,
            label=LABEL,
            organ="breast",
            background=image_of(scan),
            background_id=scan.file,
            background_kind="real",
            pixel_mm=None,
            group=group_of(scan),
            image=image_of(scan),
        )
        for index, scan in enumerate(chosen, first)
    ]


def turn(setting: Setting, plain: StableDiffusionInpaintPipeline, first: int, count: int) -> Turn:
    start = time.perf_counter()
    ours = staged(setting, drafts(setting, first, BATCH))
    middle = time.perf_counter()
    masked = placed(setting, drafts(setting, first, count))
    again = time.perf_counter()
    theirs = drawn_plainly(plain, setting, masked, PLAIN_STEPS)
    seconds = (middle - start) / BATCH, (time.perf_counter() - again) / count
    return Turn(*seconds, [draft.image for draft in ours[:count]], theirs)


def staged(setting: Setting, items: list[Draft]) -> list[Draft]:
    for stage in STAGES:
        items = apply(stage, items, setting.tools)
    return items


def placed(setting: Setting, items: list[Draft]) -> list[Draft]:
    return apply(STAGES[0], items, setting.tools)


def drawn_plainly(
    pipe: StableDiffusionInpaintPipeline, setting: Setting, items: list[Draft], steps: int
) -> list[NDArray[np.uint8]]:
    made: list[NDArray[np.uint8]] = []
    for draft in items:
        assert draft.mask is not None
        hole = window.hole(draft.mask, setting.tools.base.px)
        around = dilate(hole, round(0.04 * len(hole)))
        generator = torch.Generator().manual_seed(draft.seed)
        options = {"prompt": latents.prompt("breast", LABEL), "generator": generator, "num_inference_steps": steps}
        lesion_drawn = inpainted(pipe, draft.image, hole, options)
        whole = composite(draft.image, lesion_drawn, hole, 0)
        repaired = inpainted(pipe, whole, around, options | {"strength": 0.3})
        made.append(composite(whole, repaired, around, 0))
    return made


def inpainted(
    pipe: StableDiffusionInpaintPipeline, image: NDArray[np.uint8], hole: NDArray[np.bool_], options: dict[str, object]
) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    size = {"height": image.shape[0], "width": image.shape[1], "guidance_scale": PLAIN_GUIDANCE}
    made = pipe(image=picture.convert("RGB"), mask_image=Image.fromarray(hole), **size, **options).images[0]
    return np.asarray(made.convert("L"))


def worse_by(setting: Setting, turns: Sequence[Turn]) -> Ratio:
    """KID of ours to held-out real images less that of plain diffusers, with its 95 % interval over images."""
    extractor = features.load(EXTRACTOR)
    real = extractor.features(setting.held_out)
    ours = extractor.features(np.stack([image for one in turns for image in one.ours]))
    plain = extractor.features(np.stack([image for one in turns for image in one.plain]))
    rng = np.random.default_rng(0)
    differences: list[float] = []
    for _ in range(200):
        reals, drawn = rng.integers(len(real), size=len(real)), rng.integers(len(ours), size=len(ours))
        pair = kernel_distance(real[reals], ours[drawn]), kernel_distance(real[reals], plain[drawn])
        differences.append(pair[0] - pair[1])
    both = kernel_distance(real, ours), kernel_distance(real, plain)
    what = f"KID to {len(real)} held-out images, staged ({both[0]:.3f}) - plain ({both[1]:.3f}), 95 %; 0: no worse"
    low, high = np.quantile(differences, [0.025, 0.975])
    return Ratio(what, both[0] - both[1], 0, float(low), float(high), len(ours))


def route_flops(setting: Setting) -> float:
    """Floating-point operations of all networks for one image of ours."""
    return flops_of(lambda: staged(setting, drafts(setting, 0, BATCH))) / BATCH


def flops_of(call: Callable[[], object]) -> float:
    """Floating-point operations of a call; PyTorch leaves out attention on a CPU, which is counted here too."""

    def attention(query: object, key: object, value: object, *_: object, **__: object) -> int:
        return sdpa_flop(query, key, value)

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: attention}) as counter:
        call()
    return counter.get_total_flops()


def unet_share(setting: Setting) -> float:
    """FLOP/s of the UNet in the batches that sampling gives it, as a share of the FLOP/s of matrix multiplication."""
    base = setting.tools.base
    unet = adapters.fused(base, setting.tools.adapters[LABEL], "bf16").unet
    side = base.px // latents.downsampling(base)
    generator = torch.Generator().manual_seed(0)
    shape = BATCH, int(unet.config["in_channels"]), side, side
    seen = torch.randn(shape, generator=generator).to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.inference_mode():
        text = latents.embed(base, ["ultrasound"] * BATCH).to(torch.bfloat16)

        def forward() -> None:
            unet(seen, torch.tensor(500.0), text, return_dict=False)

        return flops_of(forward) / fastest(forward) / matmul_flops(torch.bfloat16)


def matmul_flops(dtype: torch.dtype) -> float:
    """The most floating-point operations a second that a square matrix product reaches here."""
    best = 0.0
    for side in (512, 1024, 2048):
        one, other = torch.ones(side, side, dtype=dtype), torch.ones(side, side, dtype=dtype)
        best = max(best, 2 * side**3 / fastest(lambda one=one, other=other: one @ other))
    return best


def fastest(call: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of several calls."""
    taken: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def image_of(scan: Scan) -> NDArray[np.uint8]:
    assert scan.image is not None
    return scan.image


def group_of(scan: Scan) -> str:
    return scan.group or scan.file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, help="folder of a BUSI release; phantoms without it")
    asked, sys.argv[1:] = parser.parse_known_args()
    main(__doc__ or "", lambda quick: measure(asked.data, quick))
