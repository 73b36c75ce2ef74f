"""FGSM (Goodfellow et al. 2015, arXiv 1412.6572, equation 1): one step along the sign of the gradient."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from maep import registry
from maep.attacks.losses import cross_entropy
from maep.attacks.norms import Linf, per_image
from maep.attacks.passes import evaluate
from maep.attacks.task import AttackTask


@registry.attack("fgsm", norms=("Linf",), label="FGSM", effort=None)
def fgsm(task: AttackTask) -> Tensor:
    """One step of eps from the image, even where it lowers the loss.

    With `task.stop_at_success`, images that are misclassified already are not changed.
    """
    found, eps = [], task.config.eps
    for points, labels in zip(*(torch.split(tensor, task.width) for tensor in (task.images, task.labels)), strict=True):
        logits, _, gradient = evaluate(task.model, points, functools.partial(cross_entropy, labels=labels))
        moved = Linf.project(points + eps * gradient.sign(), points, torch.full_like(points[:, :1, :1, :1], eps))
        done = (logits.argmax(dim=1) != labels) & task.stop_at_success
        found.append(torch.where(per_image(done), points, moved))
    return torch.cat(found)
