"""A purifier that holds when the attacker knows it: a robust classifier that writes its verdict into the image.

An encoder, trained against attacks, classifies the attacked image. A decoder sees only the visible part of the image,
averages over squares, and the encoder's verdict; it fills in the detail so that the classifier behind it, which was
never trained against attacks, gives the same class. What an attacker reaches is the encoder, and averages that the
written verdict outweighs. So the purifier is as robust as its encoder, less what the classifier does not follow. In a
masked autoencoder's terms all detail finer than the squares is masked.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.models.config import MaeConfig
from maep.models.families.robust import RobustConfig
from maep.models.mae import MaskedAutoencoder

_PATTERN_SCALE = 50.0
"""The patterns are stored divided by this, so that they move faster than the weights at the same learning rate."""


class RobustPurifier(nn.Module):
    """float [B, 3, H, W] in [0, 1] -> purified, same shape and range; H and W multiples of `stride`."""

    randomised = False

    def __init__(self, config: RobustConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.num_classes = config.num_classes
        if config.mae is None:
            self.stride = math.lcm(2 ** len(config.encoder_channels), config.visible_stride)
            self.encoder: nn.Module = ConvEncoder(config.encoder_channels, config.num_classes)
        else:
            self.stride = math.lcm(config.mae.patch_size, config.visible_stride)
            self.encoder = TokenEncoder(config.mae, config.num_classes)
        self.decoder = VerdictDecoder(config)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> purified, same shape and range."""
        return self.unclamped(images).clamp(0, 1)

    def unclamped(self, images: Tensor) -> Tensor:
        """The output before it is cut to [0, 1]."""
        return self.write(images, self.verdict(images))

    def verdict(self, images: Tensor) -> Tensor:
        """float [B, classes]: the share of each class in what is written; rows add up to 1."""
        return self.verdict_of(self.encoder(images))

    def verdict_of(self, logits: Tensor) -> Tensor:
        """The verdict of the head's logits [B, classes]."""
        return (self.config.temperature * logits).softmax(dim=1)

    def write(self, images: Tensor, verdict: Tensor) -> Tensor:
        """The decoder's output, not cut to [0, 1], for a `verdict` float [B, classes] from wherever."""
        written: Tensor = self.decoder(images, verdict)
        return written

    def surrogates(self) -> list[nn.Module]:
        """Modules from images to logits that an attacker differentiates instead of the whole: the head.

        The softmax of the verdict hides the gradient of the encoder behind it.
        """
        return [self.encoder]

    def relaxations(self) -> list[nn.Module]:
        """Purifiers with more gradient, whose attacked images carry over: the same weights at temperature 1."""
        return [_Softer(self)]


class _Softer(nn.Module):
    """The purifier with temperature 1."""

    def __init__(self, purifier: RobustPurifier) -> None:
        super().__init__()
        self.purifier = purifier

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> purified, same shape and range."""
        return self.purifier.write(images, self.purifier.encoder(images).softmax(dim=1)).clamp(0, 1)


class ConvEncoder(nn.Module):
    """float [B, 3, H, W] in [0, 1] -> logits [B, classes]: one pre-activation residual block a stage, batch norm."""

    def __init__(self, channels: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        first = channels[0]
        self.stem = nn.Conv2d(3, first, 4, stride=2, padding=1, bias=False)
        self.blocks = nn.Sequential(
            *(_Stage(before, after) for before, after in zip((first, *channels[:-1]), channels, strict=True))
        )
        self.norm = nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features = self.blocks(self.stem(4 * (images - 0.5)))
        logits: Tensor = self.head(F.silu(self.norm(features)).mean(dim=(2, 3)))
        return logits


class _Stage(nn.Module):
    """Pre-activation residual block (He et al. 2016, arXiv 1603.05027), halving the size where channels change."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        stride = 1 if channels == out_channels else 2
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None if stride == 1 else nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / stride, W / stride]."""
        active = F.silu(self.norm1(features))
        kept = features if self.shortcut is None else self.shortcut(active)
        change: Tensor = self.conv2(F.silu(self.norm2(self.conv1(active))))
        return kept + change


class TokenEncoder(nn.Module):
    """float [B, 3, H, W] in [0, 1] -> logits [B, classes]: a masked autoencoder's encoder, mean token, linear head."""

    def __init__(self, config: MaeConfig, num_classes: int) -> None:
        super().__init__()
        self.mae = MaskedAutoencoder(config)
        for part in (self.mae.decoder_blocks, self.mae.decoder_embed, self.mae.decoder_pixels, self.mae.decoder_norm):
            part.requires_grad_(False)
        self.mae.mask_token.requires_grad_(False)
        self.head = nn.Linear(config.width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        tokens = self.mae.encode(images).tokens
        logits: Tensor = self.head(tokens[:, 1:].mean(dim=1))
        return logits


class VerdictDecoder(nn.Module):
    """Visible part of an image and verdict -> image, not cut to [0, 1].

    The visible part is the mean over squares. Detail that follows from it is added to its bilinear enlargement. What is
    written on top is bounded, pixel by pixel: a pattern of each class, and a part that follows the image. The verdict
    conditions the features of both.
    """

    def __init__(self, config: RobustConfig) -> None:
        super().__init__()
        self.factor, self.bound, width = config.visible_stride, config.bound, config.decoder_width
        pixels = 3 * self.factor**2
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(_ConditionedBlock(width, config.num_classes) for _ in range(config.decoder_blocks))
        self.detail = nn.Conv2d(width, pixels, 3, padding=1)
        self.written = nn.Conv2d(width, pixels, 3, padding=1)
        self.patterns = nn.Parameter(torch.zeros(config.num_classes, 3, *config.image_size))
        for convolution in (self.detail, self.written):
            nn.init.zeros_(convolution.weight)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, verdict: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] and [B, classes] -> [B, 3, H, W]."""
        visible = F.avg_pool2d(images, self.factor)
        features = self.stem(4 * (visible - 0.5))
        for block in self.blocks:
            features = block(features, verdict)
        features = F.silu(features)
        enlarged = F.interpolate(visible, scale_factor=self.factor, mode="bilinear", align_corners=False)
        plain = enlarged + F.pixel_shuffle(self.detail(features), self.factor)
        pattern = _PATTERN_SCALE * torch.einsum("bk,kchw->bchw", verdict, self.patterns)
        if pattern.shape != plain.shape:
            pattern = F.interpolate(pattern, size=plain.shape[2:], mode="bilinear", align_corners=False)
        change = torch.tanh(pattern + F.pixel_shuffle(self.written(features), self.factor))
        return plain + self.bound * change


class _ConditionedBlock(nn.Module):
    """Residual block whose features the verdict scales and shifts (FiLM, Perez et al. 2018, arXiv 1709.07871).

    It starts as the identity, and without effect of the verdict.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(num_classes, 2 * channels)
        for layer in (self.conv2, self.film):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, verdict: Tensor) -> Tensor:
        """[B, C, H, W] and [B, classes] -> [B, C, H, W]."""
        scale, shift = self.film(verdict)[:, :, None, None].chunk(2, dim=1)
        inner = self.conv1(F.silu(features)) * (1 + scale) + shift
        change: Tensor = self.conv2(F.silu(inner))
        return features + change
