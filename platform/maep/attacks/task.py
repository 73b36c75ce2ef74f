"""What an attack is given: the model, the images, the configuration, and when it may stop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor, nn

from maep.attacks.config import AttackConfig


@dataclass(frozen=True)
class AttackTask:
    """Images to attack on one model; every attack is a function from this to images in their shape and range."""

    model: nn.Module
    """float [B, 3, H, W] in [0, 1] -> logits [B, classes]."""
    images: Tensor
    """float [B, 3, H, W] in [0, 1]."""
    labels: Tensor
    """int64 [B]: the true classes."""
    config: AttackConfig
    keys: Tensor
    """int64 [B], from which each image's random draws follow (maep.seeding), whatever batch it is in."""
    stop_at_success: bool = False
    """Whether an image is done as soon as the model misclassifies it. If not, it takes the full budget."""
    batch_size: int | None = None
    """Images of one forward pass; None: all."""

    @property
    def width(self) -> int:
        """Images of one forward pass."""
        return self.batch_size or len(self.images)

    def select(self, rows: Tensor) -> AttackTask:
        """The same for the images at int64 `rows`."""
        return dataclasses.replace(self, images=self.images[rows], labels=self.labels[rows], keys=self.keys[rows])
