"""Classifiers and purifiers of which the right answer of an evaluation is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maep.data.datasets import DataConfig, load


class Linear(nn.Module):
    """Tells digit 0 from digit 1 by one weight vector; the other eight logits are out of play."""

    def __init__(self) -> None:
        super().__init__()
        digits = load(DataConfig("digits"), "train")
        images, labels = digits.batch(range(len(digits)))
        pixels = images.flatten(1)
        zeros, ones = (pixels[labels == digit].mean(dim=0) for digit in (0, 1))
        self.register_buffer("weight", zeros - ones)
        self.register_buffer("offset", -((zeros + ones) / 2) @ (zeros - ones))

    def margin(self, pixels: Tensor) -> Tensor:
        """[B, D] -> [B], positive for digit 0."""
        return pixels @ self.weight + self.offset

    def forward(self, images: Tensor) -> Tensor:
        margin = self.margin(images.flatten(1))
        others = torch.full((len(images), 8), -60.0)
        return torch.cat([margin[:, None], -margin[:, None], others], dim=1)


def robust(model: Linear, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """bool [B]: whether no change within eps and [0, 1] turns the answer: every pixel goes its worst way."""
    direction = torch.where(labels == 0, 1.0, -1.0)[:, None]
    worst = (images.flatten(1) - eps * direction * model.weight.sign()).clamp(0, 1)
    return (direction[:, 0] * model.margin(worst) > 0) & (labels < 2)


class Rounding(nn.Module):
    """Grey levels rounded to 8 steps: a gradient of zero, which says nothing about robustness."""

    randomised = False

    def forward(self, images: Tensor) -> Tensor:
        return (images * 7).round() / 7


def linear() -> nn.Module:
    return Linear()


def probabilities() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10), nn.Softmax(dim=1))


def five_classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))


def damaged() -> nn.Module:
    layer = nn.Linear(3 * 16 * 16, 10)
    nn.init.constant_(layer.weight, float("nan"))
    return nn.Sequential(nn.Flatten(), layer)
