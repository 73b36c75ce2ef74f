"""Agreement with the teacher's outputs on the clean images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from maep import registry
from maep.train.loss_config import TermConfig
from maep.train.losses.inputs import LossInputs


@registry.loss(
    "kl",
    meaning="KL divergence from the teacher's output on the clean image to that on the purified one.",
    order=3,
    teacher=True,
)
def kl(inputs: LossInputs, settings: TermConfig) -> Tensor:
    """KL divergence from the teacher's probabilities on the clean images to those on the purified ones."""
    del settings
    logits, wanted = inputs.outputs[0], inputs.taught[0]
    return F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
