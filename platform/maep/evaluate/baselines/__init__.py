"""Defences without weights, a file each, that every table compares purifiers with: images in [0, 1] to the same.

Each is a module with `differentiable` (whether it has a useful gradient; without one it is attacked in the threat model
`bpda`, identity backwards, and never shown under `adaptive`) and `randomised` (whether two calls differ).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maep import registry, storage
from maep.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def build(name: str) -> nn.Module:
    """The baseline of that name, in eval mode.

    Raises ConfigError, with the nearest name, for an unknown one, and UserError for one without the attributes.
    """
    made: nn.Module = registry.baselines.get(name)(**registry.baselines.declared(name))
    if not all(hasattr(made, attribute) for attribute in ("eval", "differentiable", "randomised")):
        raise UserError(f"baseline {name!r} needs to be an nn.Module with the attributes differentiable and randomised")
    return made.eval()


def sha256(name: str) -> str:
    """A baseline's identity in results; it has no artifact."""
    return storage.sha256(f"baseline {name}".encode())
