"""Targeted FAB (Croce and Hein 2020, arXiv 1907.02044): the nearest image on the other side, in Linf, L2 or L1.

By its authors' code as AutoAttack runs it (pyautoattack, MIT); this module feeds it, and keeps what lies within eps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maep.attacks.config import AttackConfig
from maep.attacks.losses import logits_of
from maep.attacks.norms import lengths


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig,
    keys: Tensor,
    stop_when_broken: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """`config.steps` iterations towards each of the `config.targets` likeliest other classes; as the door in run.py.

    FAB makes the norm small and knows no budget: an image that it brings over the boundary within eps is returned as
    the nearest such image (with `stop_when_broken`, the first target's that succeeds), any other as it was. The
    authors' code computes in float32. Without restarts, as in AutoAttack, it draws nothing, so `keys` do not matter.
    """
    norm, width = config.norm, batch_size or len(images)
    attacked = images.detach().clone()
    with torch.no_grad():
        logits = torch.cat([logits_of(model, batch) for batch in torch.split(images, width)])
    nearest = torch.where(logits.argmax(dim=1) == labels, torch.inf, 0.0)  # 0: wrong as it is
    authors = _authors(model, config, images.dtype)
    for rank in range(2, min(config.targets, logits.shape[1] - 1) + 2):  # the likeliest class is the label
        authors.target_class = rank
        bound = config.eps if stop_when_broken else 0.0
        left = (nearest > bound).nonzero()[:, 0]
        for which in torch.split(left, width) if len(left) else ():
            original, label = images[which], labels[which]
            found = authors.attack_single_run(original, label, is_targeted=True).to(images.dtype)
            with torch.no_grad():
                broken = logits_of(model, found).argmax(dim=1) != label
            length = lengths(found - original, norm)
            better = broken & (length <= config.eps) & (length < nearest[which])
            attacked[which[better]], nearest[which[better]] = found[better], length[better].to(nearest.dtype)
    return attacked


def _authors(model: nn.Module, config: AttackConfig, dtype: torch.dtype) -> Any:
    """Their attack in float32, on a model of `dtype`, with a gradient that stays out of the model's parameters."""
    from pyautoattack.fab_pt import FABAttack_PT

    def differences(images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logit of the target less that of the label, [B, 1], and its gradient, [B, 1, 3, H, W]."""
        with torch.enable_grad():
            point = images.detach().requires_grad_()
            logits = logits_of(model, point.to(dtype)).float()
            lead = logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])
            (slope,) = torch.autograd.grad(lead.sum(), point)
        return lead.detach(), slope[:, None]

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(model, images.to(dtype)).float()

    authors = FABAttack_PT(predict, norm=config.norm, n_iter=config.steps, eps=config.eps, targeted=True)
    authors.get_diff_logits_grads_batch_targeted = differences
    return authors
