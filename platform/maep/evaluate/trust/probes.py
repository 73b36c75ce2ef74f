"""The probe images of a sanity battery, the model that they try, and what an attack on them sees on its way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import seeding, storage
from maep.attacks.config import AttackConfig
from maep.evaluate.measure import Batch, Expectation, attack_images

_JUDGE, _ATTACK, _SLOPE = 0, 1, 2
"""Streams of a randomised model's draws: an attack must not meet the draws by which it is judged."""


@contextmanager
def own_draws(device: torch.device) -> Iterator[None]:
    """What the block seeds and draws leaves torch's generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_stream(seed: int, *stream: int) -> None:
    """Seeds torch's generators for one purpose: whatever was drawn before, the same draws follow."""
    torch.manual_seed(int(seeding.mix(seed, *stream)))


@dataclass(frozen=True)
class Probes:
    """The images of a battery (float [B, 3, H, W] in [0, 1], int64 [B] twice) and the model that it tries.

    `passes`: over how many passes a randomised model's gradient is averaged; None: the model draws nothing.
    Its methods seed torch's generators; what is public of a battery calls them under `own_draws`.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    indices: Tensor
    seed: int
    passes: int | None

    @property
    def target(self) -> nn.Module:
        """What an attack takes the gradient of."""
        return self.model if self.passes is None else Expectation(self.model, self.passes)

    def only(self, which: Tensor) -> Probes:
        """The probes of which bool `which` [B] is true."""
        parts = (self.images[which], self.labels[which], self.indices[which])
        return Probes(self.model, *parts, self.seed, self.passes)

    def attacked(self, config: AttackConfig, target: nn.Module | None = None, full: bool = False) -> Tensor:
        """The images after an attack, as the protocol makes it, on `target` (None: its own).

        An image that breaks is done, but with `full` and for a randomised model, which no mean of a few draws breaks.
        """
        seed_stream(self.seed, _ATTACK)
        batch = Batch(self.images, self.labels, self.indices)
        return attack_images(target or self.target, batch, config, self.seed, self.passes is None and not full)

    def traced(self, config: AttackConfig, target: nn.Module | None = None) -> Trace:
        """The same attack, and what it saw on its way."""
        recorder = _Recorder(target or self.target, self.images, self.labels)
        return recorder.trace(self.attacked(config, recorder))

    def predictions(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """int64 [B]: what the model, called anew, says of `images`; always with the same draws."""
        seed_stream(self.seed, _JUDGE)
        with torch.no_grad():
            logits: Tensor = (model or self.model)(images)
        return logits.argmax(dim=1)

    def stand(self, images: Tensor, model: nn.Module | None = None) -> list[bool]:
        """[B]: which of `images` are classified right."""
        right: list[bool] = (self.predictions(images, model) == self.labels).tolist()
        return right

    def slope(self, target: nn.Module | None = None, stream: int = 0) -> Tensor | None:
        """[B, 3, H, W]: the gradient of each image's cross-entropy; None where none reaches the images.

        Another `stream`, other draws.
        """
        seed_stream(self.seed, _SLOPE, stream)
        with torch.enable_grad():
            point = self.images.detach().clone().requires_grad_(True)
            loss = F.cross_entropy((target or self.target)(point), self.labels, reduction="sum")
            if loss.grad_fn is None:
                return None
            return torch.autograd.grad(loss, point, allow_unused=True, materialize_grads=True)[0]


@dataclass(frozen=True)
class Trace:
    """An attack on B images from inside.

    attacked  float [B, 3, H, W]: what it returned
    losses    each image's cross-entropy at its iterates, in their order, as long as it was not broken
    broken    bool [B]: some iterate was misclassified
    kept      bool [B]: what it returned is an iterate that was misclassified
    """

    attacked: Tensor
    losses: list[list[float]]
    broken: Tensor
    kept: Tensor


class _Recorder(nn.Module):
    """`target`, which remembers what it was asked: so the attack that is looked at is the protocol's own, unchanged."""

    def __init__(self, target: nn.Module, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.target = target
        self.images, self.labels = images.detach(), labels
        self.losses: list[list[float]] = [[] for _ in images]
        self.broken: list[set[str]] = [set() for _ in images]

    def forward(self, images: Tensor) -> Tensor:
        """float [A, 3, H, W], any of the images' iterates in any order -> logits."""
        logits: Tensor = self.target(images)
        with torch.no_grad():
            self._record(images.detach(), logits.detach())
        return logits

    def trace(self, attacked: Tensor) -> Trace:
        """What was recorded of the attack that returned `attacked`."""
        kept = [_digest(image) in seen for image, seen in zip(attacked, self.broken, strict=True)]
        return Trace(attacked, self.losses, torch.tensor([bool(seen) for seen in self.broken]), torch.tensor(kept))

    def _record(self, iterates: Tensor, logits: Tensor) -> None:
        # An attack may sort, drop and refill its batch: an iterate belongs to the image nearest in its own norm.
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
