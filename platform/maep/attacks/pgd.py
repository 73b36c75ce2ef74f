"""Projected gradient ascent: FGSM, one step of it, and PGD."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from maep.attacks.config import AttackConfig
from maep.attacks.gradient_engine import State, evaluate
from maep.attacks.losses import cross_entropy
from maep.attacks.norms import BALLS, Linf, per_image


def fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, stop_when_broken: bool, batch_size: int | None
) -> Tensor:
    """Goodfellow et al. 2015, equation 1: one step of `eps` along the sign of the gradient, no random start.

    The step is taken also where it lowers the loss. With `stop_when_broken`, images that the model gets wrong stay.
    """
    found = []
    size = batch_size or len(images)
    for start in range(0, len(images), size):
        points, right = images[start : start + size], labels[start : start + size]
        logits, _, slope = evaluate(model, points, functools.partial(cross_entropy, labels=right))
        moved = Linf.project(points + eps * slope.sign(), points, torch.full_like(points[:, :1, :1, :1], eps))
        done = (logits.argmax(dim=1) != right) if stop_when_broken else torch.zeros_like(right, dtype=torch.bool)
        found.append(torch.where(per_image(done), points, moved))
    return torch.cat(found)


class PGD:
    """Madry et al. 2018 (arXiv 1706.06083), section 2.1: projected steps of one size from a random start."""

    first_counted = 0

    def __init__(self, config: AttackConfig) -> None:
        self.ball = BALLS[config.norm]
        self.eps, self.random_start = config.eps, config.random_start
        self.step_size = 2.5 * config.eps / config.steps if config.step_size is None else config.step_size
        self.num_looks = config.steps + 1  # the last iterate is looked at too

    def start(self, images: Tensor, keys: Tensor) -> State:
        """A random point of the ball, or the images themselves."""
        return State(self.ball.start(images, keys, self._eps(images)) if self.random_start else images.clone())

    def step(self, state: State, images: Tensor, looks: Tensor, losses: Tensor, slope: Tensor) -> State:
        """One step along the steepest direction."""
        del looks, losses
        moved = state.current + self.step_size * self.ball.steepest(slope, state.current)
        return State(self.ball.project(moved, images, self._eps(images)))

    def _eps(self, images: Tensor) -> Tensor:
        return torch.full_like(images[:, :1, :1, :1], self.eps)
