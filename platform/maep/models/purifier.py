"""The purifier: a masked autoencoder that maps an attacked image to a clean one in one forward pass.

By default every patch is visible (`mask_ratio` 0, deterministic). With `mask_ratio` > 0, the autoencoder first fills in
hidden patches from the visible ones, and the outputs for `num_masks` independent masks are averaged. A convolutional
stem reads the image at full resolution and the pixel head joins it with the decoder's features, so that fine detail
does not have to pass through the patch tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maep.models.config import MaeConfig
from maep.models.families.purifier import PurifierConfig
from maep.models.layers import Down, Up, residual_output, stack
from maep.models.mae import MaskedAutoencoder, fold


class Purifier(nn.Module):
    """float [B, 3, H, W] in [0, 1] -> purified, same shape and range; H and W multiples of `stride`.

    It is `randomised` if it draws masks, from torch's global generator; two calls then differ.
    """

    def __init__(self, config: PurifierConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.mae.image_size
        self.stride = config.mae.patch_size
        self.mae = MaskedAutoencoder(config.mae)
        self.change: nn.Module | None = None
        if config.residual:
            self.change = _ConvolutionalChange(config) if config.stem_channels else _TokenChange(config.mae)

    @property
    def randomised(self) -> bool:
        """Whether each call draws new masks."""
        return self.config.mask_ratio > 0

    def forward(self, images: Tensor) -> Tensor:
        """One pass, or the mean of `num_masks` passes with independent masks."""
        return self.unclamped(images).clamp(0, 1)

    def unclamped(self, images: Tensor) -> Tensor:
        """The output before it is clamped to [0, 1]: training needs a gradient outside that range too."""
        if self.config.num_masks == 1:
            return self._once(images)
        passes = [self._once(images) for _ in range(self.config.num_masks)]
        return torch.stack(passes).mean(dim=0)

    def _once(self, images: Tensor) -> Tensor:
        encoded = self.mae.encode(images, self.config.mask_ratio)
        features = self.mae.decode(encoded)
        if self.change is None:
            return self._pixels(features, encoded.grid)
        if self.randomised:  # hidden pixels must not bypass the autoencoder
            hidden = fold(encoded.mask[..., None].repeat(1, 1, self.stride**2), encoded.grid, self.stride)
            images = torch.lerp(images, self._pixels(features, encoded.grid), hidden)
        purified: Tensor = images + self.change(images, features, encoded.grid)
        return purified

    def _pixels(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.mae.unpatchify(self.mae.decoder_pixels(features), grid)


class _TokenChange(nn.Module):
    """The change of the image, computed from the decoder's features alone, patch by patch; zero at first."""

    def __init__(self, mae: MaeConfig) -> None:
        super().__init__()
        self.patch_size = mae.patch_size
        self.output = nn.Linear(mae.decoder_width, 3 * mae.patch_size**2)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, images: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, 3, H, W] and [B, L, D] -> the change to add, [B, 3, H, W]."""
        return fold(self.output(tokens), grid, self.patch_size)


class _ConvolutionalChange(nn.Module):
    """The change of the image, computed from the decoder's features and the image at full resolution; zero at first."""

    def __init__(self, config: PurifierConfig) -> None:
        super().__init__()
        first, *deeper = config.stem_channels
        pairs = list(zip(config.stem_channels, deeper, strict=False))
        self.shuffle = config.mae.patch_size // 2 ** len(deeper)
        self.stem = nn.Conv2d(3, first, 3, padding=1)
        self.encoder = nn.ModuleList(stack(channels, config.stem_blocks) for channels in config.stem_channels)
        self.downs = nn.ModuleList(Down(channels, below) for channels, below in pairs)
        self.tokens = nn.Linear(config.mae.decoder_width, config.stem_channels[-1] * self.shuffle**2)
        self.decoder = nn.ModuleList(stack(channels, config.stem_blocks) for channels in reversed(config.stem_channels))
        self.ups = nn.ModuleList(Up(below, channels) for channels, below in reversed(pairs))
        self.output = residual_output(first)

    def forward(self, images: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, 3, H, W] and [B, L, D] -> the change to add, [B, 3, H, W]."""
        features = self.stem(images)
        skips = []
        for level, blocks in enumerate(self.encoder):
            features = blocks(features)
            skips.append(features)
            if level < len(self.downs):
                features = self.downs[level](features)
        features = fold(self.tokens(tokens), grid, self.shuffle)
        for level, blocks in enumerate(self.decoder):
            features = blocks(features + skips.pop())
            if level < len(self.ups):
                features = self.ups[level](features)
        change: Tensor = self.output(features)
        return change


class Defended(nn.Module):
    """Purifier, then classifier: float [B, 3, H, W] in [0, 1] -> logits [B, classes]."""

    def __init__(self, classifier: nn.Module, purifier: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the purified images."""
        logits: Tensor = self.classifier(self.purifier(images))
        return logits


def defend(classifier: nn.Module, purifier: nn.Module) -> nn.Module:
    """`classifier` behind `purifier`, in eval mode: images in [0, 1] to logits, differentiable end to end.

    The result is a plain module, which AutoAttack, foolbox, ART and secml-torch accept.
    """
    return Defended(classifier, purifier).eval()
