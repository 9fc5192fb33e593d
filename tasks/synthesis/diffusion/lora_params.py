"""What a recipe says about the training of adapters."""

import re
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator

from storage.records import Record

TrainingPrecision = Literal["fp32", "bf16", "fp16"]

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER = (*_ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "transformer": _TRANSFORMER,
    "all": (*_TRANSFORMER, "conv1", "conv2", "conv_shortcut", "time_emb_proj"),
}
"""Presets of `LoraParams.targets`: what the names of adapted modules end in."""

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")

_SUFFIX = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


class LoraParams(Record):
    """How adapters are trained.

    >>> LoraParams(rank=16, alpha=16, rslora=True).scale
    4.0
    """

    rank: int = Field(default=8, ge=1, le=256, description="Rank of the low-rank matrices; 4 to 16 suit SD 1.5")
    alpha: int = Field(default=8, ge=1, le=512, description="Weight of the adapter is alpha / rank")
    rslora: bool = Field(
        default=False, description="rsLoRA: the weight is alpha / sqrt(rank), so that large ranks learn too"
    )
    dora: bool = Field(
        default=False, description="DoRA: every output's magnitude is learned apart from its direction; a tenth slower"
    )
    targets: Literal["attention", "transformer", "all"] | list[str] = Field(
        default="attention",
        description="What gets a LoRA: attention alone, whole transformer blocks, all with the residual blocks' "
        "convolutions, or a list of what module names end in, such as [to_q, to_v]",
    )
    text_encoder_rank: int = Field(
        default=0, ge=0, le=256, description="Rank of a LoRA on the text encoder's attention; 0: it stays as it is"
    )
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
    learning_rate: float = Field(
        default=1e-4, gt=0, le=1, description="Peak rate of AdamW: 1e-4 for SD 1.5, about 2e-3 for the embedded base"
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
    pair_times: tuple[float, float] = Field(
        default=(0.02, 0.5),
        description="Noise levels, as shares of the schedule, at which pairs of flawed and clean images are learned",
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

    @field_validator("targets")
    @classmethod
    def _names_modules(cls, targets: str | list[str]) -> str | list[str]:
        if isinstance(targets, list) and not (targets and all(_SUFFIX.fullmatch(target) for target in targets)):
            raise ValueError(
                f"targets {targets} name no modules; expected {', '.join(TARGETS)}, or what module names end in, "
                "such as [to_q, to_v]"
            )
        return targets

    @model_validator(mode="after")
    def _fits_together(self) -> "LoraParams":
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} of {self.steps} steps; expected fewer than steps")
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate {self.accumulate} of a batch of {self.batch}; expected no more than batch")
        low, high = self.pair_times
        if not 0.01 <= low < high <= 1:
            raise ValueError(f"pair_times {low}, {high}; expected 0.01 <= first < second <= 1")
        return self

    @property
    def scale(self) -> float:
        """What B · A is multiplied with before it is added to the UNet's weights."""
        return self.scale_of(self.rank)

    def scale_of(self, rank: int) -> float:
        """The same for matrices of another rank: Kalajdzievski, "A Rank Stabilization Scaling Factor", 2023."""
        return self.alpha / (rank**0.5 if self.rslora else rank)

    def endings(self) -> tuple[str, ...]:
        """What the names of adapted modules of the UNet end in."""
        return TARGETS[self.targets] if isinstance(self.targets, str) else tuple(self.targets)

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
