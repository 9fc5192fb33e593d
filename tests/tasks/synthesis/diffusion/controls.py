"""Examples and short trainings for tests of ControlNets."""

from collections.abc import Callable

from tasks.synthesis.diffusion import base, controlnet_training, lora
from tasks.synthesis.diffusion.controlnet_params import ControlNetParams
from tests.tasks.synthesis.diffusion.test_lora import Memory
from tests.tasks.synthesis.diffusion.test_lora import examples as lesions

PARAMS = ControlNetParams(
    steps=6, batch=3, warmup=1, learning_rate=2e-3, validate_every=2, checkpoint_every=2, snr_gamma=None
)


def examples(count: int, first: int = 0) -> list[lora.Example]:
    """Whole pictures with an ellipse in each, which is what the ControlNet is shown."""
    return [
        lora.Example(lesion.image, None, lesion.label, attributes=("oval",), control=lesion.mask)
        for lesion in lesions(count, first)
    ]


def train(
    base: base.Base,
    adapter: bytes | None = None,
    params: ControlNetParams = PARAMS,
    checkpoints: Memory | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> controlnet_training.ControlNet:
    """A ControlNet after a few steps, on five pictures."""
    return controlnet_training.train(
        base,
        adapter,
        None,
        examples(5),
        examples(3, first=100),
        "breast",
        params,
        seed=7,
        checkpoints=checkpoints or Memory(),
        advance=advance,
    )
