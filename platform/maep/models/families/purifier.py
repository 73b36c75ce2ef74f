"""The purifier around a masked autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from maep import config, registry
from maep.models.config import MaeConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PurifierConfig:
    """A purifier around the masked autoencoder `mae`."""

    name: Literal["purifier"] = config.key("purifier", "Model family.", decides=True)
    mae: MaeConfig = config.section(MaeConfig, "The autoencoder.")
    mask_ratio: float = config.key(
        0.0, "Share in [0, 1) of the patches hidden at test time; 0: none, the purifier is deterministic.", decides=True
    )
    num_masks: int = config.key(1, "Forward passes with independent masks that are averaged.", decides=True)
    residual: bool = config.key(
        True, "Add a change to the image; if false, the autoencoder's pixels are the output.", decides=True
    )
    stem_channels: tuple[int, ...] = config.key(
        (16, 32),
        """With `residual`: channels of the convolutional stem and pixel head, at full resolution first and half of it
        at each further level. Empty: no stem, the change comes from the patch tokens alone.""",
        decides=True,
    )
    stem_blocks: int = config.key(2, "Residual blocks at each level of the stem.", decides=True)

    def __post_init__(self) -> None:
        """Raises ValueError for a `mask_ratio` outside [0, 1) and for a stem with more levels than a patch can hold."""
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio: {self.mask_ratio} must be in [0, 1)")
        if self.num_masks < 1 or (self.num_masks > 1 and self.mask_ratio == 0):
            raise ValueError(f"num_masks: {self.num_masks} must be at least 1, and 1 where mask_ratio is 0")
        if any(count < 1 for count in self.stem_channels) or self.stem_blocks < 0:
            raise ValueError("stem_channels must each be at least 1, stem_blocks at least 0")
        coarsest = 2 ** max(len(self.stem_channels) - 1, 0)
        if self.residual and self.mae.patch_size % coarsest:
            levels = len(self.stem_channels)
            raise ValueError(f"stem_channels: {levels} levels need a patch_size that is a multiple of {coarsest}")


@registry.family("purifier", config=PurifierConfig, title="Masked-autoencoder purifier")
def build(settings: PurifierConfig) -> nn.Module:
    """See `maep.models.purifier`."""
    from maep.models.purifier import Purifier

    return Purifier(settings)
