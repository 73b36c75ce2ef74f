"""The geometry of a budget: the norm ball around an image, intersected with the image range [0, 1].

In every function `points` and `images` are float [B, 3, H, W], `images` in [0, 1], and `eps` is the radius around each
image, float [B, 1, 1, 1] of the same dtype.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from maep import seeding

SPARSITY = 0.01
"""Share of the values that one L1 step of PGD moves. The steepest step moves one value, which is slow; SLIDE (Tramèr
and Boneh 2019, arXiv 1904.13000, section 4) moves some per cent."""

_TINY = 1e-12


class Norm(Protocol):
    """Projection, steepest step and random start in one norm."""

    @staticmethod
    def project(points: Tensor, images: Tensor, eps: Tensor) -> Tensor:
        """A point near `points`, within `eps` of the image and in [0, 1]; the nearest one in Linf and L1."""

    @staticmethod
    def steepest(gradient: Tensor, points: Tensor) -> Tensor:
        """[B, 3, H, W]: the step of norm 1 that increases a loss of gradient `gradient` at `points` fastest."""

    @staticmethod
    def start(images: Tensor, keys: Tensor, eps: Tensor) -> Tensor:
        """A random point of the norm ball, drawn from the image's key alone (int64 [B], see maep.seeding)."""


class Linf:
    """The largest change of a value; starts are uniform in the norm ball."""

    @staticmethod
    def project(points: Tensor, images: Tensor, eps: Tensor) -> Tensor:
        """Clips each value to its bounds."""
        return torch.clamp(torch.minimum(torch.maximum(points, images - eps), images + eps), 0, 1)

    @staticmethod
    def steepest(gradient: Tensor, points: Tensor) -> Tensor:
        """The sign of every value."""
        del points
        return gradient.sign()

    @staticmethod
    def start(images: Tensor, keys: Tensor, eps: Tensor) -> Tensor:
        """Each value is drawn independently."""
        draws = seeding.uniform(keys, images[0].numel()).view_as(images)
        return Linf.project(images + (2 * draws.to(images.dtype) - 1) * eps, images, eps)


class L2:
    """The Euclidean length of the change; starts are on the sphere, near which almost all of the volume lies."""

    @staticmethod
    def project(points: Tensor, images: Tensor, eps: Tensor) -> Tensor:
        """Shortens the change, then clips to [0, 1], as the authors of APGD do."""
        offset = points - images
        shrink = (eps / length(offset).clamp_min(_TINY)).clamp_max(1)
        return (images + offset * shrink).clamp_(0, 1)

    @staticmethod
    def steepest(gradient: Tensor, points: Tensor) -> Tensor:
        """Along the gradient."""
        del points
        return gradient / (length(gradient) + _TINY)

    @staticmethod
    def start(images: Tensor, keys: Tensor, eps: Tensor) -> Tensor:
        """In a random direction, then clipped to [0, 1]."""
        direction = _normal(images, keys)
        return (images + eps * (direction / (length(direction) + _TINY))).clamp_(0, 1)


class L1:
    """The sum of absolute changes; starts are projected normal draws, as with the authors of APGD."""

    @staticmethod
    def project(points: Tensor, images: Tensor, eps: Tensor) -> Tensor:
        """The nearest point of the norm ball and the box together (Croce and Hein 2021, arXiv 2103.01208, section 2.2).

        Its change keeps the signs and has sizes min(max(|change| - t, 0), room), where room is the distance to the
        bound of [0, 1] and t >= 0 is the smallest value that brings the sum down to eps. The sum decreases in t, so
        bisection finds t to the last bits; the authors sort instead, which is slower on a CPU.
        """
        offset = points - images
        size, room = offset.abs(), torch.where(offset > 0, 1 - images, images)
        low = torch.zeros_like(eps)
        high = torch.where(_total(torch.minimum(size, room)) > eps, size.amax(dim=(1, 2, 3), keepdim=True), 0)
        for _ in range(30 if size.dtype == torch.float32 else 60):
            middle = (low + high) / 2
            over = _total(torch.minimum(size - middle, room).clamp_min_(0)) > eps
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        size = torch.minimum(size - high, room).clamp_min_(0)
        size *= (eps / _total(size).clamp_min_(_TINY)).clamp_max_(1)  # removes the excess left by rounding
        return (images + size * offset.sign()).clamp_(0, 1)

    @staticmethod
    def steepest(gradient: Tensor, points: Tensor) -> Tensor:
        """Along the gradient of the few steepest values that [0, 1] still allows to move.

        SLIDE moves them by their signs. Moving them in proportion to the gradient broke more images of ResNet-20, and
        finds the optimum of a linear model.
        """
        stuck = ((points <= 0) & (gradient < 0)) | ((points >= 1) & (gradient > 0))
        free = torch.where(stuck, 0, gradient)
        steps = free * (sparse_sign(free, free.new_full((len(free),), SPARSITY)) != 0)
        return steps / (_total(steps.abs()) + _TINY)

    @staticmethod
    def start(images: Tensor, keys: Tensor, eps: Tensor) -> Tensor:
        """Sparse: most changes of the projected draw are 0."""
        return L1.project(images + _normal(images, keys), images, eps)


NORMS: dict[str, type[Norm]] = {"Linf": Linf, "L2": L2, "L1": L1}


def sparse_sign(gradient: Tensor, share: Tensor) -> Tensor:
    """[B, 3, H, W] of L1 norm 1: the signs of the steepest `share` (float [B], at least one) of an image's values."""
    steepness = gradient.flatten(1).abs()
    place = ((1 - share) * steepness.shape[1]).clamp(0, steepness.shape[1] - 1).long()
    least = steepness.sort(dim=1).values.gather(1, place[:, None])
    signs = torch.where(gradient.abs() >= per_image(least[:, 0]), gradient.sign(), 0)
    return signs / (_total(signs.abs()) + 1e-10)


def length(offset: Tensor) -> Tensor:
    """Euclidean, [B, 1, 1, 1]."""
    return offset.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def per_image(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], to broadcast over images."""
    return values.view(-1, 1, 1, 1)


def _total(sizes: Tensor) -> Tensor:
    return sizes.sum(dim=(1, 2, 3), keepdim=True)


def _normal(images: Tensor, keys: Tensor) -> Tensor:
    return seeding.normal(keys, images[0].numel()).view_as(images).to(images.dtype)


def lengths(change: Tensor, norm: str) -> Tensor:
    """float [B]: the Linf, L2 or L1 norm of each image's change."""
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    measured: Tensor = torch.linalg.vector_norm(change.flatten(1), ord=order, dim=1)
    return measured
