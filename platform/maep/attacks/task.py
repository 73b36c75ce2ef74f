"""The input of an attack: model, images, configuration, and when it may stop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor, nn

from maep.attacks.config import AttackConfig


@dataclass(frozen=True)
class AttackTask:
    """Images to attack on one model. Every attack maps a task to attacked images of the same shape and range."""

    model: nn.Module
    """float [B, 3, H, W] in [0, 1] -> logits [B, classes]."""
    images: Tensor
    """float [B, 3, H, W] in [0, 1]."""
    labels: Tensor
    """int64 [B]: the true classes."""
    config: AttackConfig
    keys: Tensor
    """int64 [B]: decide each image's random draws (maep.seeding), in whatever batch it is."""
    stop_at_success: bool = False
    """Whether to stop on an image once the model misclassifies it; if false, the full budget is spent."""
    batch_size: int | None = None
    """Images per forward pass; None: all."""

    @property
    def width(self) -> int:
        """Images per forward pass."""
        return self.batch_size or len(self.images)

    def select(self, rows: Tensor) -> AttackTask:
        """The task of the images at `rows` (int64)."""
        return dataclasses.replace(self, images=self.images[rows], labels=self.labels[rows], keys=self.keys[rows])
