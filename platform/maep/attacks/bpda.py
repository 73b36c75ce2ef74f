"""Backward pass differentiable approximation: attack a module without a useful gradient (threat model `bpda`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class BackwardIdentity(nn.Module):
    """`module` forwards, identity in the backward pass (Athalye et al. 2018, arXiv 1802.00420, section 4.1.1).

    Float [B, 3, H, W] in [0, 1] -> the same shape and range; `module` must keep the shape.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """The module's output; its gradient is passed to `images` unchanged."""
        output: Tensor = _StraightThrough.apply(images, self.module)
        return output


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, module: nn.Module) -> Tensor:
        del ctx
        with torch.no_grad():
            output: Tensor = module(images)
        return output.clone() if output is images else output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradients[0], None
