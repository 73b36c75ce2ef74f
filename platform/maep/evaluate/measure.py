"""What becomes of attacked images: the model, called anew, is asked; a randomised one as often as it is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import seeding
from maep.attacks.losses import logits_of
from maep.evaluate.results import rows


@dataclass
class Outcome:
    """Of B images: prediction int64 (of most draws), loss float32 (mean over draws), num_right int64 (draws that are
    right), change float32 (in the column's norm), inherited bool, all [B]; `num_draws` is the same for all.
    """

    prediction: Tensor
    loss: Tensor
    num_right: Tensor
    change: Tensor
    inherited: Tensor
    num_draws: int


@dataclass(frozen=True)
class Judge:
    """Asks the model, called anew, about attacked images: `num_draws` times where it is randomised."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    num_draws: int
    seed: int
    norm: str

    def on(self, chosen: Tensor) -> Judge:
        """The same for some of the images, bool [B]."""
        return Judge(self.model, self.images[chosen], self.labels[chosen], self.num_draws, self.seed, self.norm)

    @torch.no_grad()
    def outcome(self, attacked: Tensor) -> Outcome:
        """What becomes of `attacked`, float [B, 3, H, W] in [0, 1]."""
        answers, losses = [], []
        for draw in range(self.num_draws):
            torch.manual_seed(int(seeding.mix(self.seed, draw)))
            logits = logits_of(self.model, attacked)
            answers.append(logits.argmax(dim=1))
            losses.append(F.cross_entropy(logits, self.labels, reduction="none"))
        every = torch.stack(answers)
        return Outcome(
            prediction=every.mode(dim=0).values,
            loss=torch.stack(losses).mean(dim=0),
            num_right=(every == self.labels).sum(dim=0),
            change=rows.change(attacked - self.images, self.norm),
            inherited=torch.zeros(len(self.labels), dtype=torch.bool),
            num_draws=self.num_draws,
        )


def read_outcome(table: pa.Table) -> Outcome:
    """The outcome that these rows are of."""
    names = ("prediction", "loss", "num_right", "change", "inherited")
    columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in names}
    return Outcome(**columns, num_draws=table["num_draws"][0].as_py())
