"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690; in L1 2021, arXiv 2103.01208) on its three losses.

It is PGD with momentum that sets its own step size. `APGD` is the method in Linf and L2, `SparseAPGD` in L1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maep import registry
from maep.attacks import losses
from maep.attacks.apgd_l1 import SparseAPGD
from maep.attacks.config import AttackConfig
from maep.attacks.gradient_engine import Best, Goal, maximise
from maep.attacks.norms import NORMS, per_image
from maep.attacks.passes import predict
from maep.attacks.task import AttackTask

MOMENTUM = 0.75  # alpha in equation 2 of the paper
RHO = 0.75  # of condition 1


@registry.attack("apgd-ce", norms=("Linf", "L2", "L1"), label="APGD-CE")
def apgd_ce(task: AttackTask) -> Tensor:
    """APGD on the cross-entropy."""
    return _maximise(task, Goal.untargeted(losses.cross_entropy, task.labels))


@registry.attack("apgd-dlr", norms=("Linf", "L2", "L1"), label="APGD-DLR")
def apgd_dlr(task: AttackTask) -> Tensor:
    """APGD on the difference of logits ratio."""
    return _maximise(task, Goal.untargeted(losses.dlr, task.labels))


@registry.attack("apgd-t", norms=("Linf", "L2", "L1"), label="APGD-T", targeted=True)
def apgd_t(task: AttackTask) -> Tensor:
    """APGD on the targeted difference of logits ratio: one run per likeliest wrong class, likeliest first.

    With the full budget it returns the iterate of largest margin max_{j != y} z_j - z_y, because losses with different
    targets have different scales. With `task.stop_at_success`, images that are misclassified already are not changed.
    """
    logits = predict(task.model, task.images, task.width)
    found = task.images.clone()
    rows = torch.arange(len(found), device=found.device)
    if task.stop_at_success:
        rows = rows[logits.argmax(dim=1) == task.labels]
    if len(rows):
        others = logits.scatter(1, task.labels[:, None], -torch.inf)
        targets = others.topk(min(task.config.targets, logits.shape[1] - 1), dim=1).indices
        found[rows] = _maximise(task.select(rows), Goal(losses.targeted_dlr, targets[rows], losses.margin))
    return found


def _maximise(task: AttackTask, goal: Goal) -> Tensor:
    if task.config.norm == "L1":
        return maximise(task, SparseAPGD(task.config), goal)
    return maximise(task, APGD(task.config), goal)


@dataclass
class Momentum(Best):
    """The state that sets the step size; all [S] except `previous`."""

    previous: Tensor  # the iterate before the current one
    last_loss: Tensor
    step_size: Tensor
    rises: Tensor  # steps since the last checkpoint that raised the loss
    halved: Tensor  # bool: whether the step was halved at the last checkpoint
    best_then: Tensor  # the best loss at the last checkpoint


class APGD:
    """Algorithm 1 of the paper.

    It follows the authors' code where that differs: in Linf it starts at a random point on the surface of the norm
    ball, checkpoints are counted in whole iterations, and the first step counts as a rise if the loss after it is above
    0.
    """

    first_counted = 0

    def __init__(self, config: AttackConfig) -> None:
        assert config.norm != "L1"
        self.norm, self.is_linf = NORMS[config.norm], config.norm == "Linf"
        self.eps, self.random_start = config.eps, config.random_start
        self.num_passes = config.steps + 1
        self.periods = _periods(config.steps)

    def start(self, images: Tensor, keys: Tensor) -> Momentum:
        """A random point on the surface of the norm ball, or the images."""
        eps = torch.full_like(images[:, :1, :1, :1], self.eps)
        current = images.clone()
        if self.random_start:
            current = self.norm.start(images, keys, eps)
            if self.is_linf:
                offset = current - images
                peak = offset.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
                current = self.norm.project(images + eps * offset / peak, images, eps)
        none = torch.full_like(eps.flatten(), -torch.inf)  # the first pass sets the best, and does not count as a rise
        return Momentum(
            current=current,
            best=current.clone(),
            best_gradient=torch.zeros_like(current),
            best_loss=none,
            previous=current.clone(),
            last_loss=-none,
            step_size=2 * eps.flatten(),
            rises=torch.zeros_like(none),
            halved=torch.ones_like(none, dtype=torch.bool),
            best_then=none.clone(),
        )

    def step(self, state: Momentum, images: Tensor, passes: Tensor, losses: Tensor, gradient: Tensor) -> Momentum:
        """Adapts the step size at a checkpoint, then makes a step."""
        best, best_gradient, best_loss = state.seen(losses, gradient)
        rises = state.rises + (losses > state.last_loss)
        current, step_size, halved, best_then = state.current, state.step_size, state.halved, state.best_then
        period = self.periods.to(passes.device)[passes]
        check = period > 0
        if check.any():
            few = rises <= RHO * period  # condition 1
            stuck = ~halved & (best_loss <= best_then)  # condition 2
            halve = check & (few | stuck)
            step_size = torch.where(halve, step_size / 2, step_size)
            current = torch.where(per_image(halve), best, current)
            gradient = torch.where(per_image(halve), best_gradient, gradient)
            halved = torch.where(check, halve, halved)
            best_then = torch.where(check, best_loss, best_then)
            rises = rises.masked_fill(check, 0)

        eps = torch.full_like(images[:, :1, :1, :1], self.eps)
        moved = self.norm.project(current + per_image(step_size) * self.norm.steepest(gradient, current), images, eps)
        share = per_image(torch.where(passes == 0, 1.0, MOMENTUM).to(images.dtype))
        following = self.norm.project(
            current + share * (moved - current) + (1 - share) * (current - state.previous), images, eps
        )
        # The authors compare the first step with a still empty record (check_oscillation reads its index -1).
        last_loss = torch.where(passes == 0, torch.zeros_like(losses), losses)
        return Momentum(
            following, best, best_gradient, best_loss, current, last_loss, step_size, rises, halved, best_then
        )


def _periods(steps: int) -> Tensor:
    """int64 [steps + 1]: at each checkpoint, the iterations since the last one; elsewhere 0."""
    periods = torch.zeros(steps + 1, dtype=torch.int64)
    before = 0
    for checkpoint in checkpoints(steps):
        if checkpoint <= steps:
            periods[checkpoint] = checkpoint - before
        before = checkpoint
    return periods


def checkpoints(steps: int) -> list[int]:
    """Iterations at which APGD adapts its step size: after 22 % of `steps`; periods shrink by 3 % to at least 6 %."""
    period, shrink, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found = [period]
    while found[-1] < steps:
        period = max(period - shrink, shortest)
        found.append(found[-1] + period)
    return found
