"""A moving average of the weights, often more accurate than the last weights (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """`weights` = d x weights + (1 - d) x the model's, after each update.

    d = min(decay, (1 + t) / (10 + t)) is smaller for the first updates t, so that the random start is soon forgotten.
    Integers (a batch norm's counter) are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Adds the current weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        present = self.model.state_dict()
        floating = [name for name, tensor in present.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in floating], [present[name] for name in floating], 1 - decay)
        for name in present.keys() - set(floating):
            self.weights[name].copy_(present[name])

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Restores an average of `updates` updates."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])
        self.updates = updates
