"""Random noise: what an attack must beat to be worth its name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.attacks.norms import lengths
from maep.attacks.query_engine import Search


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig,
    keys: Tensor,
    stop_when_broken: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """The worst (highest margin) of `config.steps` draws on the surface of the ball, as the door in run.py has it.

    Linf: every value +eps or -eps; L2: a Gaussian direction of length eps; then cut to [0, 1].
    """
    return _Noise(model, images, labels, config, keys, stop_when_broken).run(config.steps, batch_size)


class _Noise(Search):
    def propose(self, which: Tensor, turn: Tensor) -> Tensor:
        images, keys = self.images[which], seeding.mix(self.keys[which], turn)
        draw = seeding.uniform if self.config.norm == "Linf" else seeding.normal
        noise = draw(keys, images[0].numel()).to(images.dtype).view_as(images)
        if self.config.norm == "Linf":
            noise = torch.where(noise < 0.5, -1.0, 1.0).to(images.dtype)
        else:
            noise /= lengths(noise, "L2").view(-1, 1, 1, 1)
        return (images + self.config.eps * noise).clamp(0, 1)
