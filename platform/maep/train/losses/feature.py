"""Agreement with the teacher's last features of the clean images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from maep import registry
from maep.train.loss_config import TermConfig
from maep.train.losses.inputs import LossInputs


@registry.loss(
    "feature",
    meaning="Mean squared distance of the teacher's last features, purified from clean.",
    order=4,
    teacher=True,
)
def feature(inputs: LossInputs, settings: TermConfig) -> Tensor:
    """Mean squared distance of the features of purified and clean images."""
    del settings
    return F.mse_loss(inputs.outputs[1], inputs.taught[1])
