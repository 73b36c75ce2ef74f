"""Carlini and Wagner's L2 attack (2017, arXiv 1608.04644, section VI): the smallest change that is misclassified.

Written by hand, and tested against foolbox's, because no library qualifies (as of 25 November 2026): adv-lib 0.2.8
(June 2026) is maintained, but requires visdom, whose sources current setuptools cannot build; secml-torch 1.5 (July
2026) only wraps foolbox and adv-lib; ART 1.20.1 dates from July 2025 and foolbox 3.3.4 from March 2024. Besides, the
libraries stop a whole batch early; here an image's result does not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maep import registry
from maep.attacks.norms import lengths
from maep.attacks.query_engine import Outcome, QueryAttack
from maep.attacks.task import AttackTask

FIRST_CONSTANT, LEARNING_RATE = 1e-3, 1e-2
_DECAYS, _SMALL = (0.9, 0.999), 1e-8  # Adam's
_INSIDE = 1 - 1e-6  # keeps the inverse of tanh finite at black and white


@registry.attack("cw", norms=("L2",), label="C&W")
def cw(task: AttackTask) -> Tensor:
    """`steps` steps of Adam for each of `constants` values of c, untargeted with confidence 0.

    It minimises the norm without a budget. The result is the nearest misclassified iterate within eps (with
    `task.stop_at_success`, the first one), or the image itself if there is none. The step size is `config.step_size`
    in the space of the inverse tanh (None: 0.01). The first query of each constant is the image itself. The attack
    draws nothing, so `keys` do not matter.
    """
    return _CarliniWagner(task).run(task.config.constants * task.config.steps)


class _CarliniWagner(QueryAttack):
    """Minimises ||x' - x||^2 + c max(margin, 0), x' = (tanh(w) + 1) / 2, over w, by Adam."""

    differentiates = True

    def __init__(self, task: AttackTask) -> None:
        super().__init__(task)
        self.rate = LEARNING_RATE if self.config.step_size is None else self.config.step_size
        self.origin = ((2 * self.images - 1) * _INSIDE).atanh()
        self.change, self.mean, self.square = (torch.zeros_like(self.images) for _ in range(3))
        self.nearest = torch.full_like(self.best_loss, torch.inf)  # L2 of the best
        self.constant = torch.full_like(self.best_loss, FIRST_CONSTANT)
        self.lower, self.upper = torch.zeros_like(self.constant), torch.full_like(self.constant, torch.inf)
        self.found = torch.zeros_like(self.labels, dtype=torch.bool)  # whether the current constant has succeeded

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[A]: minus the hinge f of the paper's section V-A; 0 where the model is wrong."""
        return super().loss(logits, labels).clamp(max=0)

    def propose(self, which: Tensor, turn: Tensor) -> Tensor:
        candidates = (torch.tanh(self.origin[which] + self.change[which]) + 1) / 2
        return torch.where((turn == 0).view(-1, 1, 1, 1), self.images[which], candidates)

    def learn(self, which: Tensor, turn: Tensor, outcome: Outcome) -> Tensor:
        length = lengths(outcome.candidates - self.images[which], "L2")
        within = outcome.success & (length <= self.config.eps)
        nearer = within & (length < self.nearest[which])
        self.best[which[nearer]], self.nearest[which[nearer]] = outcome.candidates[nearer], length[nearer]
        self.found[which] |= outcome.success

        # As in the authors' code, distances are from the image as tanh reproduces it, so its rounding causes no step.
        there, origin = torch.tanh(self.origin[which] + self.change[which]), torch.tanh(self.origin[which])
        by_image = there - origin - self.constant[which].view(-1, 1, 1, 1) * outcome.gradient
        by_w = by_image * (1 - there**2) / 2
        step = turn % self.config.steps
        self._adam(which, by_w, step + 1)
        self._next_constant(which[step == self.config.steps - 1])
        return within

    def _adam(self, which: Tensor, gradient: Tensor, count: Tensor) -> None:
        first, second = _DECAYS
        self.mean[which] = first * self.mean[which] + (1 - first) * gradient
        self.square[which] = second * self.square[which] + (1 - second) * gradient**2
        unbias_mean, unbias_square = (
            (1 - decay ** count.to(gradient.dtype)).view(-1, 1, 1, 1) for decay in (first, second)
        )
        scale = (self.square[which] / unbias_square).sqrt() + _SMALL
        self.change[which] -= self.rate * self.mean[which] / unbias_mean / scale

    def _next_constant(self, which: Tensor) -> None:
        """Multiplies c by ten until it succeeds, then bisects between the largest failure and the least success."""
        constant, found = self.constant[which], self.found[which]
        self.upper[which] = torch.where(found, torch.minimum(self.upper[which], constant), self.upper[which])
        self.lower[which] = torch.where(found, self.lower[which], torch.maximum(self.lower[which], constant))
        between = (self.lower[which] + self.upper[which]) / 2
        self.constant[which] = torch.where(self.upper[which].isinf(), 10 * constant, between)
        for state in (self.change, self.mean, self.square):
            state[which] = 0
        self.found[which] = False
