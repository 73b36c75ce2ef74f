"""A residual U-Net, the convolutional comparison for masked autoencoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from maep import config, registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ConvConfig:
    """A residual U-Net purifier."""

    name: Literal["conv"] = config.key("conv", "Model family.", decides=True)
    image_size: tuple[int, int] = config.key((32, 32), "Height and width of an image in pixels.", decides=True)
    channels: tuple[int, ...] = config.key(
        (16, 32, 64),
        "Channels of each level, at full resolution first and half of it at each further one.",
        decides=True,
    )
    blocks: int = config.key(2, "Residual blocks at each level.", decides=True)

    def __post_init__(self) -> None:
        """Raises ValueError unless every level has whole pixels."""
        stride = 2 ** (len(self.channels) - 1)
        if not self.channels or any(count < 1 for count in self.channels) or self.blocks < 1:
            raise ValueError("channels and blocks must be at least 1")
        if any(side < 1 or side % stride for side in self.image_size):
            raise ValueError(f"channels: {len(self.channels)} levels need an image_size that is a multiple of {stride}")


@registry.family("conv", config=ConvConfig, title="U-Net purifier")
def build(settings: ConvConfig) -> nn.Module:
    """See `maep.models.conv`."""
    from maep.models.conv import ConvPurifier

    return ConvPurifier(settings)
