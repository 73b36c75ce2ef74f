"""Cross-entropy of the classifier behind the purifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from maep import config, registry
from maep.train.loss_config import TermConfig

if TYPE_CHECKING:
    from torch import Tensor

    from maep.train.losses.inputs import LossInputs


@dataclass(frozen=True)
class LabelConfig(TermConfig):
    """The classifier's term."""

    temperature: float = config.key(
        1.0, "Divisor of the classifier's logits: above 1, wrong but confident outputs cost less.", decides=True
    )

    def __post_init__(self) -> None:
        """Raises ValueError for a divisor that is not above 0."""
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature: {self.temperature} must be above 0")


@registry.loss(
    "label",
    meaning="Cross-entropy of the classifier behind the purifier, with the class that it should give.",
    config=LabelConfig,
    order=5,
)
def label(inputs: LossInputs, settings: LabelConfig) -> Tensor:
    """Cross-entropy with the true class, or with the verdict that the decoder was given."""
    import torch.nn.functional as F

    return F.cross_entropy(inputs.outputs[0] / settings.temperature, inputs.targets)
