"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690; in L1 2021, arXiv 2103.01208) on its three losses."""

from __future__ import annotations

import torch
from torch import Tensor

from maep import registry
from maep.attacks import losses
from maep.attacks.apgd import APGD
from maep.attacks.apgd_l1 import SparseAPGD
from maep.attacks.gradient_engine import Goal, maximise
from maep.attacks.passes import predict
from maep.attacks.task import AttackTask


@registry.attack("apgd-ce", norms=("Linf", "L2", "L1"), label="APGD-CE")
def apgd_ce(task: AttackTask) -> Tensor:
    """APGD on the cross-entropy."""
    return _maximise(task, Goal.untargeted(losses.cross_entropy, task.labels))


@registry.attack("apgd-dlr", norms=("Linf", "L2", "L1"), label="APGD-DLR")
def apgd_dlr(task: AttackTask) -> Tensor:
    """APGD on the difference of logits ratio."""
    return _maximise(task, Goal.untargeted(losses.dlr, task.labels))


@registry.attack("apgd-t", norms=("Linf", "L2", "L1"), label="APGD-T", targeted=True)
def apgd_t(task: AttackTask) -> Tensor:
    """APGD on the targeted difference of logits ratio: a run for each of the likeliest wrong classes, likeliest first.

    With the full budget the iterate of largest margin max_{j != y} z_j - z_y is kept: targeted losses aim at
    different classes and are scaled differently, so they do not compare between runs. With `task.stop_at_success`,
    images that the model misclassifies as they are stay.
    """
    logits = predict(task.model, task.images, task.width)
    found = task.images.clone()
    rows = torch.arange(len(found), device=found.device)
    if task.stop_at_success:
        rows = rows[logits.argmax(dim=1) == task.labels]
    if len(rows):
        others = logits.scatter(1, task.labels[:, None], -torch.inf)
        targets = others.topk(min(task.config.targets, logits.shape[1] - 1), dim=1).indices
        found[rows] = _maximise(task.select(rows), Goal(losses.targeted_dlr, targets[rows], losses.margin))
    return found


def _maximise(task: AttackTask, goal: Goal) -> Tensor:
    if task.config.norm == "L1":
        return maximise(task, SparseAPGD(task.config), goal)
    return maximise(task, APGD(task.config), goal)
