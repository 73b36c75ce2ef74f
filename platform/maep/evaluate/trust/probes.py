"""The model and the images of a sanity battery, and the trace of an attack on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import seeding, storage
from maep.attacks.config import AttackConfig
from maep.evaluate.measure import DefendedModel, ImageBatch, attack_images
from maep.models.check import check_images

_PREDICT, _ATTACK, _GRADIENT = 0, 1, 2
"""Random streams of a randomised model: an attack must not see the draws that judge it."""


@contextmanager
def isolated_draws(device: torch.device) -> Iterator[None]:
    """Restores torch's random generators after the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@dataclass(frozen=True)
class Probes:
    """The model under test and the images of its battery.

    Methods seed torch's generators: call them under `isolated_draws`. Raises DataError for images that are not float
    in [0, 1].
    """

    defended: DefendedModel
    batch: ImageBatch
    seed: int

    def __post_init__(self) -> None:
        check_images(self.batch.images)

    def where(self, chosen: Tensor) -> Probes:
        """The probes for which bool `chosen` [B] is true."""
        return Probes(self.defended, self.batch.where(chosen), self.seed)

    def calls(self, gradients: tuple[bool, ...]) -> list[Tensor]:
        """Logits of several forward passes, each with fresh draws and with or without recording a gradient."""
        found = []
        for call, gradient in enumerate(gradients):
            self._seed(call)
            with torch.set_grad_enabled(gradient):
                found.append(self.defended.model(self.batch.images).detach())
        return found

    def attacked(self, config: AttackConfig, target: nn.Module | None = None, full: bool = False) -> Tensor:
        """The images attacked on `target` (None: the model's own) as in the protocol, but not rounded.

        The attack stops at the first success, unless `full` or the model is randomised.
        """
        self._seed(_ATTACK)
        stop = not self.defended.randomised and not full
        return attack_images(target or self.defended.target, self.batch, config, self.seed, stop)

    def traced(self, config: AttackConfig, target: nn.Module | None = None) -> Trace:
        """The same attack with its trace."""
        recorder = _Recorder(target or self.defended.target, self.batch)
        return recorder.trace(self.attacked(config, recorder))

    def predictions(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """int64 [B]: the classes that the model predicts for `images`, always with the same draws."""
        self._seed(_PREDICT)
        with torch.no_grad():
            logits: Tensor = (model or self.defended.model)(images)
        return logits.argmax(dim=1)

    def right(self, images: Tensor, model: nn.Module | None = None) -> list[bool]:
        """[B]: which of `images` are classified right."""
        right: list[bool] = (self.predictions(images, model) == self.batch.labels).tolist()
        return right

    def gradient(self, target: nn.Module | None = None, stream: int = 0) -> Tensor | None:
        """[B, 3, H, W]: the gradient of each image's cross-entropy, with other draws for another `stream`.

        None where no gradient reaches the images.
        """
        self._seed(_GRADIENT, stream)
        with torch.enable_grad():
            point = self.batch.images.detach().clone().requires_grad_(True)
            loss = F.cross_entropy((target or self.defended.target)(point), self.batch.labels, reduction="sum")
            if loss.grad_fn is None:
                return None
            return torch.autograd.grad(loss, point, allow_unused=True, materialize_grads=True)[0]

    def _seed(self, *stream: int) -> None:
        torch.manual_seed(int(seeding.mix(self.seed, *stream)))


@dataclass(frozen=True)
class Trace:
    """What an attack on B images did at each iterate.

    attacked  float [B, 3, H, W]: the images that it returned
    losses    each image's cross-entropy at its iterates, in order, up to its first success
    broken    bool [B]: some iterate was misclassified
    kept      bool [B]: the returned image is a misclassified iterate
    """

    attacked: Tensor
    losses: list[list[float]]
    broken: Tensor
    kept: Tensor


class _Recorder(nn.Module):
    """Wraps `target` and records every iterate passed to it, so that the traced attack is the protocol's own."""

    def __init__(self, target: nn.Module, batch: ImageBatch) -> None:
        super().__init__()
        self.target = target
        self.images, self.labels = batch.images.detach(), batch.labels
        self.losses: list[list[float]] = [[] for _ in batch.images]
        self.broken: list[set[str]] = [set() for _ in batch.images]

    def forward(self, images: Tensor) -> Tensor:
        """float [A, 3, H, W], iterates of any of the images in any order -> logits."""
        logits: Tensor = self.target(images)
        with torch.no_grad():
            self._record(images.detach(), logits.detach())
        return logits

    def trace(self, attacked: Tensor) -> Trace:
        """The trace of the attack that returned `attacked`."""
        kept = [_digest(image) in seen for image, seen in zip(attacked, self.broken, strict=True)]
        return Trace(attacked, self.losses, torch.tensor([bool(seen) for seen in self.broken]), torch.tensor(kept))

    def _record(self, iterates: Tensor, logits: Tensor) -> None:
        # An attack may sort, drop and refill its batch: an iterate belongs to the image nearest to it.
        apart = torch.cdist(iterates.flatten(1).float(), self.images.flatten(1).float(), p=float("inf"))
        owners = apart.argmin(dim=1)
        losses = F.cross_entropy(logits.double(), self.labels[owners], reduction="none").tolist()
        wrong = (logits.argmax(dim=1) != self.labels[owners]).tolist()
        for row, owner in enumerate(owners.tolist()):
            if wrong[row]:
                self.broken[owner].add(_digest(iterates[row]))
            elif not self.broken[owner]:
                self.losses[owner].append(losses[row])


def _digest(image: Tensor) -> str:
    return storage.sha256(image.detach().cpu().contiguous().numpy().tobytes())
