"""What a recipe says about every training of the diffusion model: of adapters and of ControlNets."""

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from storage.records import Record

TrainingPrecision = Literal["fp32", "bf16", "fp16"]

_WIDTHS = (160, 1280)  # of the widest layers of the embedded base and of SD 1.5


class TrainingParams(Record):
    """How something beside the base's frozen weights is trained."""

    _RATES: ClassVar[tuple[float, float]] = (2e-3, 1e-4)  # that serve the embedded base and SD 1.5

    steps: int = Field(default=1000, ge=1, le=1_000_000, description="Optimizer steps")
    batch: int = Field(default=8, ge=1, le=1024, description="Images per step, over all processes and micro-batches")
    accumulate: int = Field(
        default=1, ge=1, le=1024, description="Micro-batches a step is computed in: less memory, the same result"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations twice instead of keeping them: less memory, a third slower"
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        default="adamw", description="adamw8bit keeps its moments in 8 bits; needs a GPU and bitsandbytes"
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Peak rate of AdamW; null: 1e-4 for SD 1.5, 2e-3 for the embedded base, others by their width",
    )
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="Weight decay of AdamW")
    warmup: int = Field(default=50, ge=0, description="Steps until the peak rate; a cosine to zero follows")
    snr_gamma: float | None = Field(default=5.0, gt=0, description="Min-SNR gamma; null: all noise levels alike")
    caption_dropout: float = Field(
        default=0.1, ge=0, le=1, description="Share of captions dropped, which classifier-free guidance needs"
    )
    noise_offset: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Noise of this size added to whole channels (Guttenberg, 2023), so that overall brightness is "
        "learned too; 0.05 to 0.1 where a base cannot make very dark or bright images",
    )
    lesion_weight: float = Field(
        default=4.0, ge=1, le=100, description="Weight of the loss inside the lesion's hole, against 1 elsewhere"
    )
    gradient_clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient")
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the weights, such as 0.99, which is then what is validated and kept; "
        "null: the weights themselves",
    )
    precision: TrainingPrecision = Field(
        default="fp32", description="bf16 is faster where the processor has it; fp16 only on a GPU"
    )
    validate_every: int = Field(default=100, ge=1, description="Steps between two validations on held-out groups")
    validation_examples: int = Field(default=32, ge=1, description="Held-out images a validation uses at most")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between two checkpoints")
    sample_every: int = Field(default=0, ge=0, description="Steps between two grids of samples; 0: none are drawn")

    @model_validator(mode="after")
    def _steps_and_batch_suffice(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} of {self.steps} steps; expected fewer than steps")
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate {self.accumulate} of a batch of {self.batch}; expected no more than batch")
        return self

    def rate(self, width: int) -> float:
        """The peak rate for a UNet whose widest layer has `width` channels.

        Where it is not given: the power of the width that goes through two rates that served, because the best rate
        falls as networks widen (Yang et al., "Tensor Programs V", 2022).

        >>> TrainingParams().rate(160), round(TrainingParams().rate(1280), 9), TrainingParams(learning_rate=0.1).rate(1)
        (0.002, 0.0001, 0.1)
        """
        if self.learning_rate is not None:
            return self.learning_rate
        (narrow, fast), (wide, slow) = zip(_WIDTHS, self._RATES, strict=True)
        return fast * (width / narrow) ** (math.log(slow / fast) / math.log(wide / narrow))

    @property
    def times_of_pairs(self) -> tuple[float, float]:
        """Noise levels, as shares of the schedule, at which pairs of flawed and clean images are learned."""
        return 0.0, 1.0

    def check_machine(self) -> None:
        """Refuse, before anything is loaded, what this machine cannot do."""
        if self.precision == "fp16" and not torch.cuda.is_available():
            raise ValueError("precision fp16 without a GPU; expected one, or precision bf16 or fp32 on a CPU")
        if self.optimizer == "adamw8bit":
            eight_bit_adamw()


def eight_bit_adamw() -> type[torch.optim.AdamW]:
    """bitsandbytes' AdamW8bit, which is called as AdamW is; ValueError where it cannot run."""
    hint = "use optimizer adamw"
    if not torch.cuda.is_available():
        raise ValueError(f"optimizer adamw8bit without a GPU; expected one: {hint}")
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore
    except ImportError as error:
        raise ValueError(
            f"optimizer adamw8bit without bitsandbytes; expected `pip install bitsandbytes`, or {hint}"
        ) from error
    return AdamW8bit  # pyright: ignore
