"""No defence: what every other row is compared with."""

from __future__ import annotations

from torch import Tensor, nn

from maep import registry


@registry.baseline("none")
class Identity(nn.Module):
    """No defence."""

    differentiable = True
    randomised = False

    def forward(self, images: Tensor) -> Tensor:
        """The images."""
        return images
