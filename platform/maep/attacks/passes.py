"""Forward and backward passes of the model under attack."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """The model's logits [B, classes]; raises FloatingPointError if any is NaN or infinite."""
    logits: Tensor = model(images)
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the model's logits are NaN or infinite")
    return logits


def evaluate(
    model: nn.Module, points: Tensor, loss: Callable[[Tensor], Tensor], differentiate: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, classes], their `loss` [B] and its gradient [B, 3, H, W] at `points` (zero unless `differentiate`).

    Raises FloatingPointError if any logit is NaN or infinite.
    """
    with torch.set_grad_enabled(differentiate):
        points = points.detach().requires_grad_(differentiate)
        logits = logits_of(model, points)
        losses = loss(logits)
        gradient = torch.autograd.grad(losses.sum(), points)[0] if differentiate else torch.zeros_like(points)
    return logits.detach(), losses.detach().to(points.dtype), gradient


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Logits [B, classes], `batch_size` images at a time; raises FloatingPointError as `evaluate` does."""
    return torch.cat([logits_of(model, batch) for batch in torch.split(images, batch_size)])
