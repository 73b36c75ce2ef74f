"""Convolutional layers shared by the purifier's stem and head and by the U-Net."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), 3x3, [B, C, H, W] -> the same shape; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.SiLU()
        nn.init.zeros_(self.conv2.weight)
        zero_bias(self.conv1, self.conv2)

    def forward(self, features: Tensor) -> Tensor:
        """Same shape out as in."""
        change: Tensor = self.conv2(self.act(self.conv1(self.act(features))))
        return features + change


class Down(nn.Sequential):
    """[B, C, H, W] -> [B, D, H / 2, W / 2]."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(nn.SiLU(), nn.Conv2d(channels, out_channels, 2, stride=2))


class Up(nn.Sequential):
    """[B, C, H, W] -> [B, D, 2 H, 2 W] by pixel shuffle."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(nn.SiLU(), nn.Conv2d(channels, 4 * out_channels, 1), nn.PixelShuffle(2))


def zero_bias(*convolutions: nn.Conv2d) -> None:
    """Sets biases to zero."""
    for convolution in convolutions:
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)


def residual_output(channels: int) -> nn.Conv2d:
    """The last convolution of a residual model, to 3 channels; zero at first, so the model starts as the identity."""
    convolution = nn.Conv2d(channels, 3, 3, padding=1)
    nn.init.zeros_(convolution.weight)
    zero_bias(convolution)
    return convolution


def stack(channels: int, count: int) -> nn.Sequential:
    """`count` residual blocks in sequence."""
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))
