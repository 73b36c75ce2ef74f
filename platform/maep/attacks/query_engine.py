"""Attacks that show the model one candidate of each image a turn, every image at its own pace.

What an image is shown depends on its own turns, answers and key only, never on its neighbours: when one is done,
the next takes its place, so batches stay full and the result is the same for any batch size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maep.attacks.config import AttackConfig
from maep.attacks.losses import logits_of, margin


@dataclass(frozen=True)
class Answer:
    """What the model said to `candidates` [A, 3, H, W]: whether it is wrong, the loss, and the loss's gradient."""

    candidates: Tensor
    broken: Tensor
    losses: Tensor
    slope: Tensor | None


class Search(ABC):
    """The best candidate of every image so far, and the rule for the next: `propose`, and `learn` where it has memory.

    `which` (int64 [A]) are the images in the batch, `turn` (int64 [A]) how many candidates each has had.
    """

    differentiates = False
    """Whether `learn` needs the gradient of the loss."""

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, config: AttackConfig, keys: Tensor, stop: bool
    ) -> None:
        self.model, self.images, self.labels, self.config, self.stop = model, images.detach(), labels, config, stop
        self.keys = keys.to(images.device)
        self.best = self.images.clone()
        self.best_loss = torch.full_like(images[:, 0, 0, 0], -torch.inf)

    @abstractmethod
    def propose(self, which: Tensor, turn: Tensor) -> Tensor:
        """The candidates [A, 3, H, W] to show next, in budget and in [0, 1]."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float [A], which the search raises."""
        return margin(logits, labels)

    def learn(self, which: Tensor, turn: Tensor, answer: Answer) -> Tensor:
        """Keeps the candidates of higher loss; bool [A]: which images are done if one success is all that counts."""
        del turn
        better = answer.losses > self.best_loss[which]
        if self.stop:
            better |= answer.broken
        self.best[which[better]] = answer.candidates[better]
        self.best_loss[which] = torch.maximum(self.best_loss[which], answer.losses)
        return answer.broken

    def run(self, turns: int, batch_size: int | None) -> Tensor:
        """`turns` candidates of each image, or fewer where it may stop; the best ones, [B, 3, H, W]."""
        count, device = len(self.images), self.images.device
        width = batch_size or count
        taken = torch.zeros(count, dtype=torch.int64, device=device)
        which, following = torch.arange(min(width, count), device=device), min(width, count)
        while len(which):
            turn = taken[which]
            done = self.learn(which, turn, self._ask(which, self.propose(which, turn)))
            taken[which] += 1
            which = which[(taken[which] < turns) & ~(done & self.stop)]
            entering = torch.arange(following, min(following + width - len(which), count), device=device)
            following += len(entering)
            which = torch.cat([which, entering])
        return self.best

    def _ask(self, which: Tensor, candidates: Tensor) -> Answer:
        labels = self.labels[which]
        with torch.set_grad_enabled(self.differentiates):
            candidates = candidates.detach().requires_grad_(self.differentiates)
            logits = logits_of(self.model, candidates)
            losses = self.loss(logits, labels)
            slope = torch.autograd.grad(losses.sum(), candidates)[0] if self.differentiates else None
        losses = losses.detach().to(self.images.dtype)
        return Answer(candidates.detach(), logits.detach().argmax(dim=1) != labels, losses, slope)
