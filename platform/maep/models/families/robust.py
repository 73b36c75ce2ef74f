"""A robust classifier that writes its verdict into the image: the family that holds when the attacker knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from maep import config, registry
from maep.models.config import MaeConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class RobustConfig:
    """A robust encoder with a classification head, and a decoder that sees the visible part and the head's verdict."""

    name: Literal["robust"] = config.key("robust", "Model family.", decides=True)
    image_size: tuple[int, int] = config.key((32, 32), "Height and width of an image in pixels.", decides=True)
    num_classes: int = config.key(10, "Classes of the head, which are those of the classifier behind.", decides=True)
    encoder_channels: tuple[int, ...] = config.key(
        (64, 128, 256),
        "Channels of the convolutional encoder's stages, each at half the resolution of the one before.",
        decides=True,
    )
    mae: MaeConfig | None = config.key(
        None, "A masked autoencoder whose encoder replaces the convolutional one; null: none.", decides=True
    )
    visible_stride: int = config.key(
        4, "The decoder sees averages over squares of this side in pixels; all finer detail is hidden.", decides=True
    )
    decoder_width: int = config.key(64, "Channels of the decoder.", decides=True)
    decoder_blocks: int = config.key(3, "Residual blocks of the decoder.", decides=True)
    bound: float = config.key(
        32 / 255,
        "Largest change of a pixel by what is written on the decoded image, in units of the image range.",
        decides=True,
    )
    temperature: float = config.key(
        8.0, "Factor of the head's logits before the softmax that makes the verdict.", decides=True
    )

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that do not fit each other."""
        coarsest = 2 ** len(self.encoder_channels)
        if not self.encoder_channels or min(*self.encoder_channels, self.decoder_width) < 1 or self.decoder_blocks < 0:
            raise ValueError("encoder_channels and decoder_width must be at least 1, decoder_blocks at least 0")
        if self.visible_stride < 1 or any(side < 1 or side % self.visible_stride for side in self.image_size):
            raise ValueError(f"visible_stride: {self.visible_stride} must divide image_size {list(self.image_size)}")
        if self.mae is None and any(side % coarsest for side in self.image_size):
            stages = len(self.encoder_channels)
            raise ValueError(f"encoder_channels: {stages} stages need an image_size that is a multiple of {coarsest}")
        if self.mae is not None and self.mae.image_size != self.image_size:
            raise ValueError(f"mae.image_size: {list(self.mae.image_size)} must be image_size {list(self.image_size)}")
        if self.num_classes < 2:
            raise ValueError(f"num_classes: {self.num_classes} must be at least 2")
        if not 0 < self.bound <= 1 or not self.temperature > 0:
            raise ValueError(f"bound: {self.bound} must be in (0, 1], temperature: {self.temperature} above 0")


@registry.family("robust", config=RobustConfig, title="Robust purifier", head=True)
def build(settings: RobustConfig) -> nn.Module:
    """See `maep.models.robust`."""
    from maep.models.robust import RobustPurifier

    return RobustPurifier(settings)
