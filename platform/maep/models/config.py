"""Configuration of the architectures. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from maep import config
from maep.models import presets

ClassifierFamily = Literal["resnet", "vgg"]


@dataclass(frozen=True)
class MaeConfig:
    """A masked autoencoder (He et al. 2022). `preset: S/16` sets the sizes of a ViT (maep.models.presets)."""

    name: Literal["mae"] = config.key("mae", "Model family.", decides=True)
    image_size: tuple[int, int] = config.key((32, 32), "Height and width of an image in pixels.", decides=True)
    patch_size: int = config.key(4, "Side of a patch in pixels; must divide `image_size`.", decides=True)
    width: int = config.key(128, "Channels of the encoder.", decides=True)
    depth: int = config.key(4, "Transformer blocks of the encoder.", decides=True)
    num_heads: int = config.key(4, "Attention heads of the encoder; must divide `width`.", decides=True)
    decoder_width: int = config.key(128, "Channels of the decoder.", decides=True)
    decoder_depth: int = config.key(1, "Transformer blocks of the decoder.", decides=True)
    decoder_heads: int = config.key(4, "Attention heads of the decoder; must divide `decoder_width`.", decides=True)
    mlp_ratio: float = config.key(4.0, "Hidden channels of a block's MLP, as a multiple of its width.", decides=True)
    norm_eps: float = config.key(1e-6, "Epsilon of the layer norms.", decides=True)

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that are inconsistent."""
        if self.patch_size < 1 or any(side < 1 or side % self.patch_size for side in self.image_size):
            height, width = self.image_size
            fits = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
            raise ValueError(
                f"patch_size: {self.patch_size} does not divide image_size {height}x{width}: one of {fits}"
            )
        for name, width, key, heads in (
            ("width", self.width, "num_heads", self.num_heads),
            ("decoder_width", self.decoder_width, "decoder_heads", self.decoder_heads),
        ):
            if width < 4 or width % 4 or heads < 1 or width % heads:
                raise ValueError(f"{name}: {width} must be a multiple of 4 and of {key}: {heads}")
        if self.depth < 1 or self.decoder_depth < 0:
            raise ValueError("depth must be at least 1, decoder_depth at least 0")
        if not min(self.width, self.decoder_width) * self.mlp_ratio >= 1:
            raise ValueError(f"mlp_ratio: {self.mlp_ratio} leaves the blocks no hidden channel; 4 is usual")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps: {self.norm_eps} must be above 0; 1e-6 is usual")

    @staticmethod
    def expand(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """`values` with `preset` resolved. Raises ValueError for an unknown preset."""
        return presets.expand(values)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022, arXiv 2106.09685) on every linear layer of the blocks in `targets`."""

    rank: int = config.key(8, "Rank of the adapters.", decides=True)
    alpha: float = config.key(16.0, "Scale: the change is multiplied by alpha / rank.", decides=True)
    dropout: float = config.key(0.0, "Share in [0, 1) of an adapter's inputs dropped in training.", decides=True)
    targets: tuple[Literal["decoder", "encoder"], ...] = config.key(
        ("decoder",), "Which blocks get adapters.", decides=True
    )

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range and for empty `targets`."""
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"rank: {self.rank} must be at least 1, alpha: {self.alpha:g} above 0; 8 and 16 are usual")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} must be in [0, 1)")
        if not self.targets:
            raise ValueError("targets: name decoder, encoder or both")


_CLASSIFIER_STEPS = {"resnet": 6, "vgg": 3}
"""Layers added by one more block at each level."""


def check_classifier(family: str, depth: int, width: int) -> None:
    """Raises ValueError unless classifier `family` has a network of that depth and width."""
    step = _CLASSIFIER_STEPS[family]
    if depth < step + 2 or depth % step != 2:
        examples = ", ".join(str(step * n + 2) for n in (1, 3, 9))
        raise ValueError(f"depth: {depth} is not {step}n + 2, such as {examples}")
    if width < 1:
        raise ValueError(f"width: {width} must be at least 1")
