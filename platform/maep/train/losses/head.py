"""Cross-entropy of the encoder's head on the attacked images: adversarial training of a robust purifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from maep import config, registry
from maep.train.loss_config import TermConfig

if TYPE_CHECKING:
    from torch import Tensor

    from maep.train.losses.inputs import LossInputs


@dataclass(frozen=True)
class HeadConfig(TermConfig):
    """The head's term."""

    label_smoothing: float = config.key(0.0, "Share in [0, 1) of the target spread over all classes.", decides=True)

    def __post_init__(self) -> None:
        """Raises ValueError for a share outside [0, 1)."""
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: {self.label_smoothing} must be in [0, 1)")


@registry.loss(
    "head",
    meaning="Cross-entropy of the encoder's head, of purifiers that have one, on the attacked image.",
    config=HeadConfig,
    order=6,
)
def head(inputs: LossInputs, settings: HeadConfig) -> Tensor:
    """Cross-entropy with the true class."""
    import torch.nn.functional as F

    return F.cross_entropy(inputs.head_logits, inputs.batch.labels, label_smoothing=settings.label_smoothing)
