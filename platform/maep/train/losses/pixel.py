"""Distance of the purified from the clean pixels."""

from __future__ import annotations

from torch import Tensor

from maep import registry
from maep.train.loss_config import TermConfig
from maep.train.losses.inputs import LossInputs


@registry.loss(
    "pixel",
    meaning="Distance of purified and clean pixels.",
    order=1,
)
def pixel(inputs: LossInputs, settings: TermConfig) -> Tensor:
    """Mean absolute (`loss.pixel_norm` l1) or squared (l2) difference, or the mean over images of its root (rms)."""
    del settings
    difference = inputs.purified - inputs.batch.images
    if inputs.config.pixel_norm == "rms":
        return difference.square().mean(dim=(1, 2, 3)).clamp_min(1e-12).sqrt().mean()
    return difference.abs().mean() if inputs.config.pixel_norm == "l1" else difference.square().mean()
