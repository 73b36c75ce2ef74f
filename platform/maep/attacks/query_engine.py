"""The engine of attacks that query one candidate per image and turn, each image at its own pace.

The candidates of an image depend only on its own turns, outcomes and key, never on the rest of the batch. When an image
is done, the next takes its place, so batches stay full and the result is the same for any batch size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from maep.attacks.losses import margin
from maep.attacks.passes import evaluate
from maep.attacks.task import AttackTask


@dataclass(frozen=True)
class Outcome:
    """What the model said about `candidates` [A, 3, H, W]: whether each is misclassified, its loss and gradient."""

    candidates: Tensor
    success: Tensor
    losses: Tensor
    gradient: Tensor
    """[A, 3, H, W]; zero unless the attack `differentiates`."""


class QueryAttack(ABC):
    """The best candidate of each image so far; subclasses choose the next (`propose`) and may keep state (`learn`).

    `which` (int64 [A]) are the images in the batch, `turn` (int64 [A]) the number of candidates that each has had.
    """

    differentiates = False
    """Whether `learn` needs the gradient of the loss."""

    def __init__(self, task: AttackTask) -> None:
        self.task, self.config, self.labels, self.keys = task, task.config, task.labels, task.keys
        self.images = task.images.detach()
        self.best = self.images.clone()
        self.best_loss = torch.full_like(self.images[:, 0, 0, 0], -torch.inf)

    @abstractmethod
    def propose(self, which: Tensor, turn: Tensor) -> Tensor:
        """The next candidates [A, 3, H, W], within the budget and [0, 1]."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float [A], which the attack maximises."""
        return margin(logits, labels)

    def learn(self, which: Tensor, turn: Tensor, outcome: Outcome) -> Tensor:
        """Keeps candidates of higher loss. Returns bool [A]: which images are done with `stop_at_success`."""
        del turn
        better = outcome.losses > self.best_loss[which]
        if self.task.stop_at_success:
            better |= outcome.success
        self.best[which[better]] = outcome.candidates[better]
        self.best_loss[which] = torch.maximum(self.best_loss[which], outcome.losses)
        return outcome.success

    def run(self, turns: int) -> Tensor:
        """The best of `turns` candidates of each image, or of fewer with `stop_at_success`: [B, 3, H, W]."""
        count, width, device = len(self.images), self.task.width, self.images.device
        taken = torch.zeros(count, dtype=torch.int64, device=device)
        which, following = torch.arange(min(width, count), device=device), min(width, count)
        while len(which):
            turn = taken[which]
            done = self.learn(which, turn, self._outcome(which, self.propose(which, turn)))
            taken[which] += 1
            which = which[(taken[which] < turns) & ~(done & self.task.stop_at_success)]
            entering = torch.arange(following, min(following + width - len(which), count), device=device)
            following += len(entering)
            which = torch.cat([which, entering])
        return self.best

    def _outcome(self, which: Tensor, candidates: Tensor) -> Outcome:
        labels = self.labels[which]
        logits, losses, gradient = evaluate(
            self.task.model, candidates, lambda logits: self.loss(logits, labels), self.differentiates
        )
        return Outcome(candidates.detach(), logits.argmax(dim=1) != labels, losses, gradient)


def squares(size: torch.Size, top: Tensor, left: Tensor, side: Tensor) -> Tensor:
    """bool [B, 1, H, W]: true inside one square per image, given by top row, left column and side (int64 [B])."""
    height, width = (torch.arange(length, device=top.device) for length in size)
    rows = (height >= top[:, None]) & (height < (top + side)[:, None])
    columns = (width >= left[:, None]) & (width < (left + side)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
