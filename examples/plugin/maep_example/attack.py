"""An attack: MI-FGSM (Dong et al. 2018, arXiv 1710.06081), gradient ascent with momentum."""

from __future__ import annotations

import torch
from torch import Tensor

from maep import registry
from maep.attacks.losses import cross_entropy
from maep.attacks.norms import Linf
from maep.attacks.passes import evaluate
from maep.attacks.task import AttackTask

DECAY = 1.0


@registry.attack("momentum", norms=("Linf",), label="MI-FGSM")
def momentum(task: AttackTask) -> Tensor:
    """`steps` signed steps of eps / steps along the accumulated gradient, each of L1 norm 1."""
    points, direction = task.images.clone(), torch.zeros_like(task.images)
    eps = torch.full_like(points[:, :1, :1, :1], task.config.eps)
    for _ in range(task.config.steps):
        _, _, gradient = evaluate(task.model, points, lambda logits: cross_entropy(logits, task.labels))
        direction = DECAY * direction + gradient / gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        points = Linf.project(points + eps / task.config.steps * direction.sign(), task.images, eps)
    return points
