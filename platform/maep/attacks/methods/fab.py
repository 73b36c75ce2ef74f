"""Targeted FAB (Croce and Hein 2020, arXiv 1907.02044): the nearest misclassified image, in Linf, L2 or L1.

It runs the authors' code as AutoAttack does (pyautoattack, MIT) and keeps images within eps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maep import registry
from maep.attacks.config import AttackConfig
from maep.attacks.norms import lengths
from maep.attacks.passes import logits_of, predict
from maep.attacks.task import AttackTask


@registry.attack("fab-t", norms=("Linf", "L2", "L1"), label="FAB-T", targeted=True)
def fab(task: AttackTask) -> Tensor:
    """`steps` iterations towards each of the `targets` likeliest other classes.

    FAB minimises the norm without a budget. The result is the nearest misclassified image within eps (with
    `task.stop_at_success`, that of the first target that succeeds), or the image itself if there is none. The authors'
    code computes in float32. Without restarts, as in AutoAttack, it draws nothing, so `keys` do not matter.
    """
    model, images, labels, config, width = task.model, task.images, task.labels, task.config, task.width
    attacked = images.detach().clone()
    logits = predict(model, images, width)
    nearest = torch.where(logits.argmax(dim=1) == labels, torch.inf, 0.0)  # 0: misclassified already
    authors = _authors(model, config, images.dtype)
    for rank in range(2, min(config.targets, logits.shape[1] - 1) + 2):  # the likeliest class is the label
        authors.target_class = rank
        bound = config.eps if task.stop_at_success else 0.0
        left = (nearest > bound).nonzero()[:, 0]
        for which in torch.split(left, width) if len(left) else ():
            original, label = images[which], labels[which]
            found = authors.attack_single_run(original, label, is_targeted=True).to(images.dtype)
            success = predict(model, found, width).argmax(dim=1) != label
            length = lengths(found - original, config.norm)
            better = success & (length <= config.eps) & (length < nearest[which])
            attacked[which[better]], nearest[which[better]] = found[better], length[better].to(nearest.dtype)
    return attacked


def _authors(model: nn.Module, config: AttackConfig, dtype: torch.dtype) -> Any:
    """The authors' attack in float32 on a model of `dtype`, with a gradient for the images only."""
    from pyautoattack.fab_pt import FABAttack_PT

    def differences(images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logit of the target less that of the label, [B, 1], and its gradient, [B, 1, 3, H, W]."""
        with torch.enable_grad():
            point = images.detach().requires_grad_()
            logits = logits_of(model, point.to(dtype)).float()
            lead = logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])
            (gradient,) = torch.autograd.grad(lead.sum(), point)
        return lead.detach(), gradient[:, None]

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(model, images.to(dtype)).float()

    authors = FABAttack_PT(predict, norm=config.norm, n_iter=config.steps, eps=config.eps, targeted=True)
    authors.get_diff_logits_grads_batch_targeted = differences
    return authors
