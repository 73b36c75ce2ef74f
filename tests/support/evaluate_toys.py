"""Classifiers and purifiers of which the right answer of an evaluation is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.evaluate.measure import DefendedModel, ImageBatch


def randomised(model: nn.Module, eot: int) -> DefendedModel:
    """A model that is declared to draw."""
    return DefendedModel(model, randomised=True, eot=eot)


def zeros_and_ones() -> ImageBatch:
    """51 `dev` digits that `Linear` tells apart; it keeps them all at 8/255, and about three quarters at 40/255."""
    digits = load(DataConfig("digits"), "dev")
    images, labels = digits.batch(range(240))
    indices = torch.from_numpy(digits.indices[:240])
    return ImageBatch(images, labels, indices).where(labels < 2)


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


class Shattered(nn.Module):
    """A fine ripple on every pixel, of a phase of its own: nothing forwards, but the gradient is that of the ripple."""

    differentiable = True
    randomised = False

    def __init__(self, slope: float = 5.0, height: float = 0.001) -> None:
        super().__init__()
        self.slope, self.height = slope, height

    def forward(self, images: Tensor) -> Tensor:
        phase = torch.arange(images[0].numel()).mul(2.399963).view(1, *images.shape[1:])  # the golden angle
        return (images + self.height * torch.sin(self.slope / self.height * images + phase)).clamp(0, 1)


class Saturated(nn.Module):
    """Logits so large that float32 rounds every probability to 0 or 1, and the cross-entropy's gradient to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Linear()

    def forward(self, images: Tensor) -> Tensor:
        return 1e4 * self.model(images)


class Sigmoid(nn.Module):
    """A steep sigmoid at each grey level, whose gradient is 0 in float32: a quantiser that looks differentiable."""

    differentiable = True
    randomised = False

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(1e5 * (images - 0.48))


class Noise(nn.Module):
    """Gaussian noise on every pixel, not declared as randomised."""

    differentiable = True
    randomised = False

    def __init__(self, sigma: float = 0.1) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        return (images + self.sigma * torch.randn_like(images)).clamp(0, 1)


class NoisyInGradient(nn.Module):
    """Draws only when gradients are computed, so a plain forward pass does not reveal it."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.1 * torch.randn_like(images) if torch.is_grad_enabled() else images


class Contrast(nn.Module):
    """A smooth purifier that takes contrast away, after which the linear model's answer is known."""

    differentiable = True
    randomised = False
    KEPT = 0.8

    def forward(self, images: Tensor) -> Tensor:
        return 0.5 + self.KEPT * (images - 0.5)


class Shifted(Linear):
    """The linear model with its boundary moved towards both digits: easily broken, and along the same direction."""

    def __init__(self, towards: float) -> None:
        super().__init__()
        self.towards = towards

    def margin(self, pixels: Tensor) -> Tensor:
        plain = super().margin(pixels)
        return plain - self.towards * plain.detach().sign()


class Trapped(Linear):
    """The linear model with ripples on its margin, steeper than it: an attack settles in the first of them."""

    def margin(self, pixels: Tensor) -> Tensor:
        plain = super().margin(pixels) / 10
        return plain + 0.5 * torch.sin(2 * torch.pi * plain)


class NotANumber(nn.Module):
    """The square root of nothing: right forwards, and a gradient of NaN at every black pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0 * (images * 0).sqrt()


class CountsItsBatch(nn.Module):
    """Answers every image with the class that is the number of images in its batch."""

    def forward(self, images: Tensor) -> Tensor:
        return 10 * torch.eye(10)[[len(images) % 10] * len(images)] + 0 * images.flatten(1)[:, :10]
