"""The one door to every attack: `attack(model, images, labels, config, keys)`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from maep.attacks.config import AttackConfig, AttackName

_MODULES: dict[AttackName, str] = {
    "fgsm": "gradient",
    "pgd": "gradient",
    "pgd-cw": "gradient",
    "apgd-ce": "gradient",
    "apgd-dlr": "gradient",
    "apgd-t": "gradient",
    "fab-t": "fab",
    "square": "square",
    "hard-label": "hard_label",
    "cw": "cw",
    "spatial": "spatial",
    "patch": "patch",
    "noise": "noise",
}
"""Which module of this package makes each attack; each has a function `attack` as below. Imported when needed: some
bring a library."""

DIFFERENTIATING: tuple[AttackName, ...] = (
    "fgsm", "pgd", "pgd-cw", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "cw", "patch",
)  # fmt: skip
"""Those that take the model's gradient; the others only ask it."""


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig,
    keys: Tensor,
    stop_when_broken: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """Attacked images, float [B, 3, H, W] in [0, 1], within `config.eps` of `images` in `config.norm`.

    `model` maps float [B, 3, H, W] in [0, 1] to logits: a bare classifier (`oblivious`), one behind a purifier
    (`adaptive`), or anything else. `keys` (int64 [B], see maep.seeding) decide each image's draws, whatever batch it
    stands in. With `stop_when_broken` an image that the model gets wrong is done, and its place is taken by the next
    one (where one success is all that counts); without, every image takes the full budget and the iterate of
    highest loss is kept, which is what images that another model shall see need. `batch_size`: images that go
    through the model together; None: all.

    Raises FloatingPointError where the model's logits are NaN or infinite.
    """
    if not len(images) or config.eps == 0:
        return images.clone()
    module = importlib.import_module(f"maep.attacks.{_MODULES[config.name]}")
    made: Callable[..., Tensor] = module.attack
    with torch.random.fork_rng(devices=[]):
        return made(model, images, labels, config, keys, stop_when_broken, batch_size)
