"""A small residual U-Net purifier, the convolutional comparison for masked autoencoders."""

from __future__ import annotations

from torch import Tensor, nn

from maep.models.families.conv import ConvConfig
from maep.models.layers import Down, Up, residual_output, stack


class ConvPurifier(nn.Module):
    """U-Net: float [B, 3, H, W] in [0, 1] -> the same, H and W multiples of `stride`."""

    randomised = False

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.stride = 2 ** (len(config.channels) - 1)
        first, *deeper = config.channels
        pairs = list(zip(config.channels, deeper, strict=False))
        self.stem = nn.Conv2d(3, first, 3, padding=1)
        self.encoder = nn.ModuleList(stack(channels, config.blocks) for channels in config.channels)
        self.downs = nn.ModuleList(Down(channels, below) for channels, below in pairs)
        self.ups = nn.ModuleList(Up(below, channels) for channels, below in reversed(pairs))
        self.decoder = nn.ModuleList(stack(channels, config.blocks) for channels, _ in reversed(pairs))
        self.output = residual_output(first)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> purified, same shape and range."""
        return self.unclamped(images).clamp(0, 1)

    def unclamped(self, images: Tensor) -> Tensor:
        """The output before it is clamped to [0, 1]: training needs a gradient outside that range too."""
        features = self.stem(images)
        skips = []
        for level, blocks in enumerate(self.encoder):
            features = blocks(features)
            if level < len(self.downs):
                skips.append(features)
                features = self.downs[level](features)
        for up, blocks in zip(self.ups, self.decoder, strict=True):
            features = blocks(up(features) + skips.pop())
        purified: Tensor = images + self.output(features)
        return purified
