"""The optimizers and the schedule of their learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maep.train.loop.config import LoopConfig

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024, Muon)."""
_ITERATIONS = 4


def learning_rate(progress: float, loop: LoopConfig) -> float:
    """Linear warm-up over `warmup`, then half a cosine (Loshchilov and Hutter 2017) or a line to zero, by samples."""
    if progress < loop.warmup:
        return loop.peak_lr * min(1.0, (progress + 1 / loop.num_steps) / loop.warmup)
    done = (progress - loop.warmup) / (1 - loop.warmup)
    return loop.peak_lr * (1 - done if loop.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: nn.Module, loop: LoopConfig, fused: bool = True) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), without weight decay for biases and norms; or Muon.

    Groups of parameters have `lr_scale`, the factor of `learning_rate` that is their rate.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if loop.optimizer == "muon":
        return Muon(parameters, loop)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": loop.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=loop.peak_lr, betas=loop.betas, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives each group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) on convolutions' kernels, SGD with Nesterov momentum on all other parameters.

    The kernels' momentum is orthogonalised as a matrix [out, in x height x width], and the kernels are kept at the
    norm sqrt(out), so that the learning rate is the angle of a step. torch.optim.Muon takes matrices only.
    """

    def __init__(self, parameters: list[nn.Parameter], loop: LoopConfig) -> None:
        kernels = [p for p in parameters if p.ndim == 4]
        others = [p for p in parameters if p.ndim != 4]
        groups = [
            {"params": kernels, "orthogonal": True, "weight_decay": 0.0, "lr_scale": 1.0},
            {
                "params": others,
                "orthogonal": False,
                "weight_decay": loop.weight_decay,
                "lr_scale": loop.sgd_lr / loop.lr,
            },
        ]
        super().__init__(
            [group for group in groups if group["params"]], {"lr": loop.peak_lr, "momentum": loop.momentum}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad + group["weight_decay"] * parameter
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].mul_(group["momentum"]).add_(gradient)
        update = gradient + group["momentum"] * momentum
        if group["orthogonal"]:
            rows = len(parameter)
            parameter.mul_(math.sqrt(rows) / parameter.norm().clamp_min(1e-12))
            update = orthogonalised(update.reshape(rows, -1)).view_as(parameter)
        parameter.sub_(group["lr"] * update)


def orthogonalised(matrix: Tensor) -> Tensor:
    """float [R, C], nearly U V' of the singular value decomposition U S V', by Newton-Schulz iterations."""
    a, b, c = _NEWTON_SCHULZ
    wide: Tensor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
