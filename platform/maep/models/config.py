"""Architectures of the models, as configured. Imports no torch."""

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
        """Raises ValueError for sizes that do not fit each other."""
        if self.patch_size < 1 or any(side < 1 or side % self.patch_size for side in self.image_size):
            height, width = self.image_size
            fits = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
            raise ValueError(
                f"patch_size: {self.patch_size} does not divide image_size {height}x{width}: one of {fits}"
            )
        for name, width, heads in (
            ("width", self.width, self.num_heads),
            ("decoder_width", self.decoder_width, self.decoder_heads),
        ):
            if width < 4 or width % 4 or heads < 1 or width % heads:
                raise ValueError(f"{name}: {width} must be a multiple of 4 and of its {heads} heads")
        if self.depth < 1 or self.decoder_depth < 0:
            raise ValueError("depth must be at least 1, decoder_depth at least 0")
        if min(self.width, self.decoder_width) * self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio: {self.mlp_ratio} leaves the blocks no hidden channel; 4 is usual")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps: {self.norm_eps} must be above 0; 1e-6 is usual")

    @staticmethod
    def expand(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """`values` as they are written, with `preset` resolved. Raises ValueError where it is not known."""
        return presets.expand(values)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


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
        """Raises ValueError for ratios outside [0, 1), and for a stem deeper than the patches."""
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
        """Raises ValueError for images that the levels do not divide."""
        stride = 2 ** (len(self.channels) - 1)
        if not self.channels or any(count < 1 for count in self.channels) or self.blocks < 1:
            raise ValueError("channels and blocks must be at least 1")
        if any(side < 1 or side % stride for side in self.image_size):
            raise ValueError(f"channels: {len(self.channels)} levels need an image_size that is a multiple of {stride}")


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
        """Raises ValueError for values out of range, and for adapters on nothing."""
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank: {self.rank} must be at least 1, alpha: {self.alpha:g} above 0; 8 and 16 are usual")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} must be in [0, 1)")
        if not self.targets:
            raise ValueError("targets: name decoder, encoder or both")


_CLASSIFIER_STEPS = {"resnet": 6, "vgg": 3}
"""Layers that one more block at each level adds."""


def check_classifier(family: str, depth: int, width: int) -> None:
    """Raises ValueError where classifier `family` has no network of that depth and width."""
    step = _CLASSIFIER_STEPS[family]
    if depth < step + 2 or depth % step != 2:
        examples = ", ".join(str(step * n + 2) for n in (1, 3, 9))
        raise ValueError(f"depth: {depth} is not {step}n + 2, such as {examples}")
    if width < 1:
        raise ValueError(f"width: {width} must be at least 1")
