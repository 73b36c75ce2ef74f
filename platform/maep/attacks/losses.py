"""Losses that attacks maximise: one number per image, high where the model misclassifies it.

`logits` are float [B, classes], `labels` the true classes and `targets` the classes aimed at, int64 [B].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""logits, labels -> [B]"""

TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""logits, labels, targets -> [B]"""

_TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B]: the loss of FGSM, PGD and APGD-CE."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """[B]: max_{j != y} z_j - z_y, above 0 where the model is wrong (Carlini and Wagner 2017, f_6 negated)."""
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return others - _at(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """[B]: the margin over z_1 - z_3, the highest less the third highest logit (Croce and Hein 2020, equation 6).

    Unlike the cross-entropy it is invariant to scale and shift of the logits. With two classes it is the margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """[B]: z_t - z_y."""
    return _at(logits, targets) - _at(logits, labels)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """[B]: z_t - z_y over z_1 - (z_3 + z_4) / 2 (Croce and Hein 2020, equation 7).

    With fewer than four classes it is z_t - z_y.
    """
    if logits.shape[1] < 4:
        return targeted_margin(logits, labels, targets)
    top = logits.topk(4, dim=1).values
    return targeted_margin(logits, labels, targets) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]
