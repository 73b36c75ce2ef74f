"""Cross-entropy of the encoder's head on the attacked images: adversarial training of a robust purifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from maep import config, registry
from maep.train.loss_config import TermConfig
from maep.train.losses.inputs import LossInputs


@dataclass(frozen=True)
class HeadConfig(TermConfig):
    """The head's term."""

    label_smoothing: float = config.key(0.0, "Share in [0, 1) of the target spread over all classes.", decides=True)


@registry.loss(
    "head",
    meaning="Cross-entropy of the encoder's head, of purifiers that have one, on the attacked image.",
    config=HeadConfig,
    order=6,
)
def head(inputs: LossInputs, settings: HeadConfig) -> Tensor:
    """Cross-entropy with the true class."""
    return F.cross_entropy(inputs.head_logits, inputs.batch.labels, label_smoothing=settings.label_smoothing)
