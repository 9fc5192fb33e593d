"""What a recipe says about the training of a ControlNet."""

from typing import ClassVar

from pydantic import Field

from tasks.synthesis.diffusion.training_params import TrainingParams


class ControlNetParams(TrainingParams):
    """How a ControlNet is trained: the network that holds whole pictures to their masks."""

    _RATES: ClassVar[tuple[float, float]] = (2e-3, 1e-5)

    start: str | None = Field(
        default=None,
        description="ControlNet to go on from, in diffusers' layout: a folder, an s3:// URL or a hub id, such as "
        "lllyasviel/control_v11p_sd15_seg; null: a copy of the base's own encoder",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Peak rate of AdamW; null: 1e-5 for SD 1.5, 2e-3 for the embedded base, others by their width",
    )
    snr_gamma: float | None = Field(
        default=None,
        gt=0,
        description="Min-SNR gamma; null: all noise levels alike, because the noisiest decide where things lie, and "
        "with a base that predicts v gamma leaves them a hundredth of the weight",
    )
