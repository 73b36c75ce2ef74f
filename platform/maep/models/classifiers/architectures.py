"""Architectures of the classifiers that maep trains: a family, a depth and a width make a module.

All map normalised images [B, 3, H, W], at least 8 pixels a side, to logits. In each, the batch norm `bnK` of a module
follows its convolution `convK`; `fold` relies on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from maep.errors import nearest
from maep.models.config import check_classifier


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2016 (arXiv 1512.03385, section 4.2), depth 6n + 2, option A shortcuts.

    Takes normalised images [B, 3, H, W]; parameter names follow akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self, depth: int, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        check_classifier("resnet", depth, width)
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _residual_layer(width, width, num_blocks, stride=1)
        self.layer2 = _residual_layer(width, 2 * width, num_blocks, stride=2)
        self.layer3 = _residual_layer(2 * width, 4 * width, num_blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.padding = (out_channels - channels) // 2

    def forward(self, features: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        if self.padding:
            features = F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(inner + features)


def _residual_layer(channels: int, out_channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = _ResidualBlock(channels, out_channels, stride)
    return nn.Sequential(first, *(_ResidualBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))


class ThinVgg(nn.Module):
    """A VGG (Simonyan and Zisserman 2015, arXiv 1409.1556) with batch norm, thin and pooled early; depth 3n + 2.

    One 3x3 convolution at full resolution, then three stages of n with 2, 4 and 8 times its channels, max pooling
    before each; the mean over the last map and one linear layer. No shortcuts.
    """

    def __init__(self, depth: int, num_classes: int = 10, width: int = 24) -> None:
        super().__init__()
        check_classifier("vgg", depth, width)
        layers: list[nn.Module] = [_ConvUnit(3, width)]
        channels = width
        for stage in range(3):
            layers.append(nn.MaxPool2d(2))
            for _ in range((depth - 2) // 3):
                layers.append(_ConvUnit(channels, width * 2 ** (stage + 1)))
                channels = width * 2 ** (stage + 1)
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        logits: Tensor = self.linear(self.features(images).mean(dim=(2, 3)))
        return logits


class _ConvUnit(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(features)))


_FAMILIES: dict[str, type[CifarResNet | ThinVgg]] = {"resnet": CifarResNet, "vgg": ThinVgg}


def build(values: Mapping[str, Any]) -> nn.Module:
    """The module that `values` describe: depth, num_classes, width and family (default: resnet).

    Raises ValueError for an unknown family or shape, TypeError for other keys.
    """
    shape = dict(values)
    family = shape.pop("family", "resnet")
    if family not in _FAMILIES:
        raise ValueError(f"family: {family!r} is not known: {nearest(str(family), _FAMILIES)}")
    return _FAMILIES[family](**shape)


def fold(model: nn.Module) -> None:
    """Folds the batch norms of a frozen model of these families into its convolutions, in place.

    It computes the same function in fewer operations. Any other model is left unchanged, since its order is not known.
    """
    if not isinstance(model, tuple(_FAMILIES.values())):
        return
    for module in list(model.modules()):
        norms = [name for name, child in module.named_children() if isinstance(child, nn.BatchNorm2d)]
        for norm in norms:
            convolution = norm.replace("bn", "conv")
            setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
            setattr(module, norm, nn.Identity())
