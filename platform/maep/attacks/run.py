"""The entry point of every attack: `attack(model, images, labels, config, keys)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maep import registry, seeding
from maep.attacks.config import AttackConfig
from maep.attacks.task import AttackTask


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig | str = "pgd",
    keys: Tensor | None = None,
    stop_at_success: bool = False,
    batch_size: int | None = None,
    **settings: Any,
) -> Tensor:
    """Attacked images, float [B, 3, H, W] in [0, 1], within `config.eps` of `images` in `config.norm`.

        attacked = maep.attack(model, images, labels, "apgd-ce", eps=4 / 255, steps=50)

    model            float [B, 3, H, W] in [0, 1] to logits: a bare classifier, one behind a purifier, or any other
    images, labels   float [B, 3, H, W] in [0, 1] and their true classes, int64 [B]
    config           an AttackConfig, or the name of an attack with the keys of AttackConfig as `settings`
    keys             int64 [B], from which each image's random draws follow; None: its position in the batch
    stop_at_success  stop on an image once the model misclassifies it, for speed. If false, the full budget is spent and
                     the iterate of highest loss is returned, which images for another model need
    batch_size       images per forward pass; None: all

    Raises ConfigError for an unknown attack, ValueError for settings that do not fit it and for images, labels or keys
    of another shape, type or range, and FloatingPointError if the model returns NaN or infinite logits.
    """
    if isinstance(config, str):
        config = AttackConfig(config, **settings)
    elif settings:
        raise TypeError(f"{', '.join(settings)}: set these in the AttackConfig")
    _check(images, labels, keys)
    if not len(images) or config.eps == 0:
        return images.clone()
    keys = seeding.mix(0, torch.arange(len(images))) if keys is None else keys
    method = registry.attacks.get(config.name)
    task = AttackTask(model, images, labels, config, keys.to(images.device), stop_at_success, batch_size)
    with torch.random.fork_rng(devices=[]):
        attacked: Tensor = method(task)
    return attacked


def _check(images: Tensor, labels: Tensor, keys: Tensor | None) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be a tensor, float [B, 3, H, W], not {_kind(images)}")
    for name, values in {"labels": labels, "keys": torch.arange(len(images)) if keys is None else keys}.items():
        if not isinstance(values, Tensor) or values.shape != images.shape[:1] or values.dtype != torch.int64:
            raise ValueError(f"{name} must be a tensor, int64 [{len(images)}], not {_kind(values)}")
    if len(images) and (images.min() < 0 or images.max() > 1):  # such as 0 to 255: eps would mean something else
        raise ValueError(f"images have values of {images.min():g} to {images.max():g}: all must be in [0, 1]")


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
