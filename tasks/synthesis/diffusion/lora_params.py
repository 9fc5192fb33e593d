"""What a recipe says about the training of adapters."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.synthesis.diffusion.training_params import TrainingParams

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


class LoraParams(TrainingParams):
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
    pair_times: tuple[float, float] = Field(
        default=(0.02, 0.5),
        description="Noise levels, as shares of the schedule, at which pairs of flawed and clean images are learned",
    )

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
    def _pairs_have_times(self) -> Self:
        low, high = self.pair_times
        if not 0.01 <= low < high <= 1:
            raise ValueError(f"pair_times {low}, {high}; expected 0.01 <= first < second <= 1")
        return self

    @property
    def times_of_pairs(self) -> tuple[float, float]:
        """As `TrainingParams` says, here as the recipe asks for it."""
        return self.pair_times

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
