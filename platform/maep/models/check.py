"""The check of a foreign classifier or purifier, made once when it is loaded: does it keep to the interface?

It calls the module on one image, on two, and for a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maep.errors import ConfigError, DataError


def check_classifier(classifier: nn.Module, what: str, images: Tensor) -> int:
    """Raises ConfigError unless images give finite logits with a gradient. Returns the number of classes.

    `images` are float [B, 3, H, W] in [0, 1], of which two are used; `what` names the classifier in errors.
    """
    for logits in _outputs(classifier, what, images, differentiable=True):
        if logits.ndim != 2 or not logits.is_floating_point():
            shape = f"{logits.dtype} {list(logits.shape)}"
            raise ConfigError(f"{what} returns {shape}: it must return logits, float [batch, classes]")
        if not torch.isfinite(logits).all():
            raise ConfigError(f"{what} returns NaN or infinity on clean images: its weights are damaged")
        if looks_like_probabilities(logits):
            raise ConfigError(f"{what} returns probabilities: return logits, without the last softmax")
    return logits.shape[1]


def check_purifier(purifier: nn.Module, what: str, images: Tensor, differentiable: bool = True) -> None:
    """Raises ConfigError unless images give images of the same shape, in [0, 1]; arguments as `check_classifier`.

    differentiable  whether a gradient must reach the images
    """
    for count, purified in enumerate(_outputs(purifier, what, images, differentiable), 1):
        if purified.shape != images[:count].shape:
            shapes = f"{list(images[:count].shape)} into {list(purified.shape)}"
            raise ConfigError(f"{what} turns {shapes}: it must keep the shape")
        try:
            check_images(purified)
        except DataError as error:
            raise ConfigError(f"{what}: {error}: its last step must be clamp(0, 1)") from None


def check_images(images: Tensor) -> None:
    """Raises DataError unless `images` is a float tensor [B, 3, H, W] with every value in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise DataError(f"images are {images.dtype} {list(images.shape)}: they must be float [B, 3, H, W] in [0, 1]")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):  # NaN fails both
        seen = f"{float(images.min()):.4g} to {float(images.max()):.4g}"
        raise DataError(f"images have values of {seen}: all must be in [0, 1]")


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether every row of `logits` [B, classes] is non-negative and sums to one."""
    sums = logits.sum(dim=1)
    return bool((logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))


def _outputs(module: nn.Module, what: str, images: Tensor, differentiable: bool) -> list[Tensor]:
    """The outputs for the first image and for the first two."""
    found = []
    for count in (1, 2):
        given = images[:count].detach().clone().requires_grad_(differentiable)
        try:
            with torch.set_grad_enabled(differentiable):
                output = module(given)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{what} does not take images of shape {list(given.shape)}: {reason}") from None
        if not isinstance(output, Tensor) or len(output) != len(given):
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(f"{what} returns {shape} for {len(given)} images: it must return one row per image")
        if differentiable and not output.requires_grad:
            raise ConfigError(f"{what} passes no gradient to the images: compute its output from them in torch alone")
        found.append(output.detach())
    return found
