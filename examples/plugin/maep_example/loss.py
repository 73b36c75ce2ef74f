"""A loss term: the total variation of the purified image (Rudin et al. 1992)."""

from __future__ import annotations

from torch import Tensor

from maep import registry
from maep.train.loss_config import TermConfig
from maep.train.losses.inputs import LossInputs


@registry.loss("smoothness", meaning="Total variation of the purified image.")
def smoothness(inputs: LossInputs, settings: TermConfig) -> Tensor:
    """Mean absolute difference of neighbouring pixels."""
    del settings
    images = inputs.purified
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
