"""Auto-PGD in L1 (Croce and Hein 2021, arXiv 2103.01208): sparse steps, and radii that shrink to the budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maep.attacks.config import AttackConfig
from maep.attacks.gradient_engine import Best
from maep.attacks.norms import L1, per_image, sparse_sign

REDUCE = 1.5  # factor by which steps shrink, and by which changed values outnumber those of the next step
SHORTEST = 0.1  # the shortest step, as a share of the radius
SPARSER = 0.95  # where the best iterate keeps fewer than this share of its changed values, steps are long again
FIRST_SHARE = 0.2  # share of the values that move first, if the attack starts at the image


@dataclass
class Sparse(Best):
    """The state that sets the step of each image; all float [S]."""

    step_size: Tensor  # in L1
    share: Tensor  # share of the values that move
    changed: Tensor  # number of values changed in the best iterate at the last checkpoint


class SparseAPGD:
    """Algorithm 1 of the paper, with the radii 3 eps, 2 eps and eps for 30, 30 and 40 % of the steps (section 3.3).

    Each radius starts at the projected best iterate of the one before. Only the last radius is within the budget, so
    only its iterates are returned; each radius takes one extra pass, `steps` + 3 in all. Fewer than 10 steps are all
    made at eps. It follows the authors' code (AutoAttack's `use_largereps`) where that differs from the paper.
    """

    def __init__(self, config: AttackConfig) -> None:
        self.eps, self.random_start = config.eps, config.random_start
        radii = _radii(config.steps)
        self.num_passes = sum(steps + 1 for _, steps in radii)
        self.first_counted = self.num_passes - radii[-1][1] - 1
        factors: list[float] = []
        checks: list[bool] = []
        for factor, steps in radii:
            period = max(int(0.04 * steps), 1)
            factors += [factor] * (steps + 1)
            checks += [number > 0 and number % period == 0 for number in range(steps + 1)]
        self.radius = torch.tensor(factors, dtype=torch.float64) * config.eps  # by pass
        self.check = torch.tensor(checks)

    def start(self, images: Tensor, keys: Tensor) -> Sparse:
        """A random point of the first norm ball, or the images."""
        eps = self._radius(torch.zeros(len(images), dtype=torch.int64), images)
        return _begin(L1.start(images, keys, eps) if self.random_start else images.clone(), images, eps)

    def step(self, state: Sparse, images: Tensor, passes: Tensor, losses: Tensor, gradient: Tensor) -> Sparse:
        """Adapts step size and sparsity at a checkpoint, then makes a step or moves to the next radius."""
        best, best_gradient, best_loss = state.seen(losses, gradient)
        current, step_size, share, changed = state.current, state.step_size, state.share, state.changed
        eps = self._radius(passes, images)
        check = self.check.to(passes.device)[passes]
        if check.any():
            now = _num_changed(best, images)
            sparser = check & (now < SPARSER * changed)
            longest = eps.flatten()
            shorter = torch.minimum(torch.maximum(step_size / REDUCE, SHORTEST * longest), longest)
            step_size = torch.where(check, torch.where(sparser, longest, shorter), step_size)
            share = torch.where(check, now / images[0].numel() / REDUCE, share)
            changed = torch.where(check, now, changed)
            current = torch.where(per_image(sparser), best, current)
            gradient = torch.where(per_image(sparser), best_gradient, gradient)
        moved = L1.project(current + per_image(step_size) * sparse_sign(gradient, share), images, eps)
        made = Sparse(moved, best, best_gradient, best_loss, step_size, share, changed)

        following = self._radius((passes + 1).clamp_max(self.num_passes - 1), images)
        shrinking = (following != eps).flatten().nonzero()[:, 0]
        if len(shrinking):
            inside, radius = images[shrinking], following[shrinking]
            made.put(shrinking, _begin(L1.project(best[shrinking], inside, radius), inside, radius))
        return made

    def _radius(self, passes: Tensor, images: Tensor) -> Tensor:
        return per_image(self.radius.to(images.device, images.dtype)[passes.to(images.device)])


def _radii(steps: int) -> list[tuple[float, int]]:
    """Factors of eps, and the number of steps at each; as with the authors, the first two are rounded up."""
    part = -(-3 * steps // 10)
    return [(3.0, part), (2.0, part), (1.0, steps - 2 * part)] if steps >= 10 else [(1.0, steps)]


def _begin(current: Tensor, images: Tensor, eps: Tensor) -> Sparse:
    """The state before the first pass at a radius."""
    changed, count = _num_changed(current, images), images[0].numel()
    return Sparse(
        current=current,
        best=current.clone(),
        best_gradient=torch.zeros_like(current),
        best_loss=torch.full_like(changed, -torch.inf),
        step_size=eps.flatten(),
        share=torch.where(changed > 0, changed / count / REDUCE, FIRST_SHARE),
        changed=torch.where(changed > 0, changed, count),
    )


def _num_changed(points: Tensor, images: Tensor) -> Tensor:
    return (points != images).sum(dim=(1, 2, 3)).to(images.dtype)
