"""Gradient attacks in the Linf ball: FGSM, PGD and APGD, all keeping the iterate of highest loss.

`model` maps float [B, 3, H, W] in [0, 1] to logits. It may be a bare classifier (`oblivious`) or a classifier
behind a purifier (`adaptive`); the attack takes the gradient of whatever it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig

Loss = Callable[[Tensor, Tensor], Tensor]
"""logits [B, classes], labels int64 [B] -> loss of each image [B], which the attack raises."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B]: the untargeted loss of FGSM, PGD and APGD-CE."""
    return F.cross_entropy(logits, labels, reduction="none")


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig,
    keys: Tensor,
    stop_when_broken: bool = False,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Attacked images, float [B, 3, H, W], within `eps` of `images` and in [0, 1].

    `keys` (int64 [B], see maep.seeding) decide each image's random start, whatever batch it stands in.
    With `stop_when_broken` an image that the model gets wrong is done (adaptive attacks, where one success is all
    that counts); without, every image takes the full budget and its iterate of highest loss is kept, which is what
    images that another model shall see need.
    """
    state = _State(model, images, labels, loss, stop_when_broken)
    if config.eps > 0:
        for _ in _STEPS[config.name](state, config, keys):
            if not len(state.active):
                break
    return state.best


class _State:
    """The best iterate of every image, and which images are still attacked."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, loss: Loss, stop_when_broken: bool) -> None:
        self.model, self.loss, self.stop_when_broken = model, loss, stop_when_broken
        self.images, self.labels = images, labels
        self.best = images.clone()
        self.best_loss = torch.full((len(images),), -torch.inf, device=images.device, dtype=images.dtype)
        self.active = torch.arange(len(images), device=images.device)

    def evaluate(self, candidates: Tensor, gradient: bool = True) -> tuple[Tensor, Tensor]:
        """Loss [A] and gradient [A, 3, H, W] at `candidates` of the active images; keeps the better ones.

        Raises FloatingPointError where the model's logits are NaN or infinite.
        """
        candidates = candidates.detach()
        with torch.set_grad_enabled(gradient):
            point = candidates.requires_grad_(gradient)
            logits = self.model(point)
            losses = self.loss(logits, self.labels[self.active])
            slope = torch.autograd.grad(losses.sum(), point)[0] if gradient else torch.zeros_like(point)
        candidates, losses, logits = candidates.detach(), losses.detach().to(candidates.dtype), logits.detach()
        if not torch.isfinite(logits).all():
            raise FloatingPointError("the attacked model's logits are NaN or infinite")
        broken = logits.argmax(dim=1) != self.labels[self.active]
        better = losses > self.best_loss[self.active]
        if self.stop_when_broken:
            better |= broken
        self.best[self.active[better]] = candidates[better]
        self.best_loss[self.active] = torch.maximum(self.best_loss[self.active], losses)
        self._broken = broken
        return losses, slope

    def drop_broken(self) -> Tensor:
        """Bool [A]: which of the active images go on; the others leave (only where that was asked for)."""
        stay = ~self._broken if self.stop_when_broken else torch.ones_like(self._broken)
        self.active = self.active[stay]
        return stay

    def project(self, candidates: Tensor, eps: float) -> Tensor:
        """The nearest images within `eps` of the active originals and in [0, 1]."""
        original = self.images[self.active]
        return torch.clamp(torch.minimum(torch.maximum(candidates, original - eps), original + eps), 0, 1)

    def start(self, config: AttackConfig, keys: Tensor) -> Tensor:
        """The first iterate: a uniform draw from the ball, or the images themselves."""
        if not config.random_start:
            return self.images.clone()
        draws = seeding.uniform(keys.to(self.images.device), self.images[0].numel()).view_as(self.images)
        return self.project(self.images + (2 * draws.to(self.images.dtype) - 1) * config.eps, config.eps)


def _fgsm(state: _State, config: AttackConfig, keys: Tensor) -> Iterator[None]:
    """Goodfellow et al. 2015, equation 1: one step of eps along the sign of the gradient, no random start."""
    del keys
    _, slope = state.evaluate(state.images)
    current = state.project(state.images + config.eps * slope.sign(), config.eps)
    stay = state.drop_broken()
    state.best[state.active] = current[stay]  # its one step, also where that lowers the loss
    yield


def _pgd(state: _State, config: AttackConfig, keys: Tensor) -> Iterator[None]:
    """Madry et al. 2018: projected steps along the sign of the gradient from a random start."""
    step = 2.5 * config.eps / config.steps if config.step_size is None else config.step_size
    current = state.start(config, keys)
    for _ in range(config.steps):
        _, slope = state.evaluate(current)
        stay = state.drop_broken()
        current = state.project((current + step * slope.sign())[stay], config.eps)
        yield
    state.evaluate(current, gradient=False)
    yield


def _apgd(state: _State, config: AttackConfig, keys: Tensor) -> Iterator[None]:
    """Auto-PGD, Croce and Hein 2020 (arXiv 2003.01690), algorithm 1: momentum, and steps that halve when stuck.

    Follows the authors' code where it differs from the paper: it starts on the ball's surface, in a random direction,
    and counts the checkpoints in whole iterations.
    """
    checkpoints = _apgd_checkpoints(config.steps)
    current = state.start(config, keys)
    if config.random_start:
        offset = current - state.images
        peak = offset.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        current = state.project(state.images + config.eps * offset / peak, config.eps)
    losses, slope = state.evaluate(current)
    stay = state.drop_broken()
    current, losses, slope = current[stay], losses[stay], slope[stay]
    previous, best, best_slope, best_loss = current.clone(), current.clone(), slope.clone(), losses.clone()
    step = torch.full_like(losses, 2 * config.eps)
    risen = torch.zeros_like(losses)
    halved, best_then = torch.ones_like(losses, dtype=torch.bool), best_loss.clone()
    yield
    last_checkpoint = 0
    for iteration in range(1, config.steps + 1):
        size = step.view(-1, 1, 1, 1)
        moved = state.project(current + size * slope.sign(), config.eps)
        momentum = 1.0 if iteration == 1 else 0.75
        following = state.project(
            current + momentum * (moved - current) + (1 - momentum) * (current - previous), config.eps
        )
        previous, current, last_losses = current, following, losses
        losses, slope = state.evaluate(current, gradient=iteration < config.steps)
        risen = risen + (losses > last_losses)
        better = losses > best_loss
        best[better], best_slope[better], best_loss[better] = current[better], slope[better], losses[better]
        if iteration in checkpoints:
            few = risen <= 0.75 * (iteration - last_checkpoint)
            stuck = ~halved & (best_loss <= best_then)
            halved, best_then = few | stuck, best_loss.clone()
            step = torch.where(halved, step / 2, step)
            current[halved], slope[halved] = best[halved], best_slope[halved]
            risen, last_checkpoint = torch.zeros_like(risen), iteration
        stay = state.drop_broken()
        if not stay.all():
            current, previous, best, slope, best_slope = (
                images[stay] for images in (current, previous, best, slope, best_slope)
            )
            losses, best_loss, best_then, step, halved, risen = (
                values[stay] for values in (losses, best_loss, best_then, step, halved, risen)
            )
        yield


def _apgd_checkpoints(steps: int) -> set[int]:
    """Iterations at which APGD looks at its progress: 22 % of `steps` on, then each time 3 % less, at least 6 %."""
    period, shrink, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    checkpoints = [period]
    while checkpoints[-1] < steps:
        period = max(period - shrink, shortest)
        checkpoints.append(checkpoints[-1] + period)
    return set(checkpoints)


_STEPS: dict[str, Callable[[_State, AttackConfig, Tensor], Iterator[None]]] = {
    "fgsm": _fgsm,
    "pgd": _pgd,
    "apgd-ce": _apgd,
}
