"""The attacks that climb a loss by its gradient: FGSM, PGD, CW-margin PGD and APGD with its losses.

`model` maps float [B, 3, H, W] in [0, 1] to logits. It may be a bare classifier (`oblivious`) or a classifier
behind a purifier (`adaptive`); the attack takes the gradient of whatever it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maep.attacks import gradient_engine, losses
from maep.attacks.apgd import APGD
from maep.attacks.apgd_l1 import SparseAPGD
from maep.attacks.config import AttackConfig, AttackName
from maep.attacks.gradient_engine import Task
from maep.attacks.losses import Loss
from maep.attacks.pgd import PGD, fgsm

_UNTARGETED: dict[AttackName, Loss] = {
    "pgd": losses.cross_entropy,
    "pgd-cw": losses.margin,
    "apgd-ce": losses.cross_entropy,
    "apgd-dlr": losses.dlr,
}


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig,
    keys: Tensor,
    stop_when_broken: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """Attacked images; see `maep.attacks.run.attack`, the door to all attacks."""
    if not len(images) or config.eps == 0:
        return images.clone()
    if config.name == "fgsm":
        return fgsm(model, images, labels, config.eps, stop_when_broken, batch_size)
    keys = keys.to(images.device)
    if config.name == "apgd-t":
        return _targeted(model, images, labels, config, keys, stop_when_broken, batch_size)
    loss = _UNTARGETED[config.name]
    task = Task(model, images, labels, labels[:, None], keys, lambda logits, labels, _: loss(logits, labels))
    return _climb(task, config, stop_when_broken, batch_size)


def _targeted(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig,
    keys: Tensor,
    stop_when_broken: bool,
    batch_size: int | None,
) -> Tensor:
    """APGD-T: a run for each of the likeliest wrong classes, the likeliest first.

    With the full budget the iterate of largest margin max_{j != y} z_j - z_y is kept: targeted losses aim at
    different classes and are scaled differently, so they do not compare between runs. With `stop_when_broken`, images
    that the model gets wrong as they are stay.
    """
    logits = gradient_engine.predict(model, images, batch_size)
    found = images.clone()
    rows = torch.arange(len(images), device=images.device)
    if stop_when_broken:
        rows = rows[logits.argmax(dim=1) == labels]
    if len(rows):
        others = logits.scatter(1, labels[:, None], -torch.inf)
        targets = others.topk(min(config.targets, logits.shape[1] - 1), dim=1).indices
        task = Task(model, images[rows], labels[rows], targets[rows], keys[rows], losses.targeted_dlr, losses.margin)
        found[rows] = _climb(task, config, stop_when_broken, batch_size)
    return found


def _climb(task: Task, config: AttackConfig, stop_when_broken: bool, batch_size: int | None) -> Tensor:
    if config.name in ("pgd", "pgd-cw"):
        return gradient_engine.climb(task, PGD(config), stop_when_broken, batch_size)
    if config.norm == "L1":
        return gradient_engine.climb(task, SparseAPGD(config), stop_when_broken, batch_size)
    return gradient_engine.climb(task, APGD(config), stop_when_broken, batch_size)
