"""Attacked images for training, made on the loss that is trained: N-FGSM and PGD, with a budget for each image.

An evaluation attacks by `maep.attacks`; these are for speed, and may leave the budget as N-FGSM does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maep import seeding


def n_fgsm(loss: Callable[[Tensor], Tensor], images: Tensor, eps: Tensor, keys: Tensor) -> Tensor:
    """N-FGSM (de Jorge et al. 2022, arXiv 2202.01181, equation 7): noise of twice the budget, one step, no projection.

    `loss` maps images to the scalar that rises; `images` float [B, 3, H, W] in [0, 1], as the result;
    `eps` float [B, 1, 1, 1]; `keys` int64 [B], from which the noise follows.
    """
    noisy = images + 2 * eps * _noise(images, keys)
    return (noisy + eps * _gradient(loss, noisy).sign()).clamp(0, 1)


def pgd(loss: Callable[[Tensor], Tensor], images: Tensor, eps: Tensor, keys: Tensor, steps: int) -> Tensor:
    """PGD in Linf (Madry et al. 2018): `steps` steps of 2.5 eps / steps from a random start within the budget.

    Arguments as those of `n_fgsm`. With one step the step is 1.25 eps (Wong et al. 2020, arXiv 2001.03994).
    """
    low, high = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    attacked = (images + eps * _noise(images, keys)).clamp(0, 1)
    step = eps * (1.25 if steps == 1 else 2.5 / steps)
    for _ in range(steps):
        attacked = torch.minimum(torch.maximum(attacked + step * _gradient(loss, attacked).sign(), low), high)
    return attacked


def _noise(images: Tensor, keys: Tensor) -> Tensor:
    """Uniform in [-1, 1), in the shape of `images`."""
    return (2 * seeding.uniform(keys, images[0].numel()) - 1).view_as(images)


def _gradient(loss: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Raises FloatingPointError where it is not finite."""
    points = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(points), points)
    if not torch.isfinite(gradient).all():
        raise FloatingPointError("the gradient of the attack is not finite")
    return gradient
