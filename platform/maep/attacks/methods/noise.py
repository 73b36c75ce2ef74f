"""Random noise: the control that every attack must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from maep import registry, seeding
from maep.attacks.norms import lengths
from maep.attacks.query_engine import QueryAttack
from maep.attacks.task import AttackTask


@registry.attack("noise", norms=("Linf", "L2"), label="Noise", effort="draws", differentiates=False)
def noise(task: AttackTask) -> Tensor:
    """The draw of highest margin among `draws` on the surface of the norm ball, clipped to [0, 1].

    Linf: every value +eps or -eps; L2: a Gaussian direction of length eps.
    """
    return _Noise(task).run(task.config.draws)


class _Noise(QueryAttack):
    def propose(self, which: Tensor, turn: Tensor) -> Tensor:
        images, keys = self.images[which], seeding.mix(self.keys[which], turn)
        draw = seeding.uniform if self.config.norm == "Linf" else seeding.normal
        noise = draw(keys, images[0].numel()).to(images.dtype).view_as(images)
        if self.config.norm == "Linf":
            noise = torch.where(noise < 0.5, -1.0, 1.0).to(images.dtype)
        else:
            noise /= lengths(noise, "L2").view(-1, 1, 1, 1)
        return (images + self.config.eps * noise).clamp(0, 1)
