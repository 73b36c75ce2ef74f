"""PGD (Madry et al. 2018, arXiv 1706.06083): projected gradient ascent, on the cross-entropy or the margin."""

from __future__ import annotations

import torch
from torch import Tensor

from maep import registry
from maep.attacks import losses
from maep.attacks.config import AttackConfig
from maep.attacks.gradient_engine import Goal, Iterates, maximise
from maep.attacks.norms import NORMS
from maep.attacks.task import AttackTask


@registry.attack("pgd", norms=("Linf", "L2", "L1"), label="PGD")
def pgd(task: AttackTask) -> Tensor:
    """PGD on the cross-entropy."""
    return maximise(task, PGD(task.config), Goal.untargeted(losses.cross_entropy, task.labels))


@registry.attack("pgd-cw", norms=("Linf", "L2", "L1"), label="CW-PGD")
def pgd_cw(task: AttackTask) -> Tensor:
    """PGD on the margin of Carlini and Wagner (2017), which keeps its gradient where the cross-entropy saturates."""
    return maximise(task, PGD(task.config), Goal.untargeted(losses.margin, task.labels))


class PGD:
    """Section 2.1 of the paper: projected steps of constant size from a random start."""

    first_counted = 0

    def __init__(self, config: AttackConfig) -> None:
        self.norm = NORMS[config.norm]
        self.eps, self.random_start = config.eps, config.random_start
        self.step_size = 2.5 * config.eps / config.steps if config.step_size is None else config.step_size
        self.num_passes = config.steps + 1  # the last iterate is evaluated too

    def start(self, images: Tensor, keys: Tensor) -> Iterates:
        """A random point of the norm ball, or the images."""
        return Iterates(self.norm.start(images, keys, self._eps(images)) if self.random_start else images.clone())

    def step(self, state: Iterates, images: Tensor, passes: Tensor, losses: Tensor, gradient: Tensor) -> Iterates:
        """One step along the steepest direction."""
        del passes, losses
        moved = state.current + self.step_size * self.norm.steepest(gradient, state.current)
        return Iterates(self.norm.project(moved, images, self._eps(images)))

    def _eps(self, images: Tensor) -> Tensor:
        return torch.full_like(images[:, :1, :1, :1], self.eps)
