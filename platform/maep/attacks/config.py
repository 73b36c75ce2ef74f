"""Configuration of an attack: its name, norm, budget and effort. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from maep import config, registry
from maep.errors import ConfigError, nearest


@dataclass(frozen=True)
class AttackConfig:
    """One attack. `eps` and `step_size` are in units of the image range [0, 1], measured in `norm`.

    In L2 and L1, `eps` is the norm over the whole image (0.5 in L2 is usual for 32 x 32). For `spatial` it is the
    largest shift as a share of the side, with a proportional rotation (30 degrees at 0.1). For `patch` it is the side
    of the painted square as a share of the image's side.
    """

    name: str = config.key("pgd", "The attack.", decides=True, choices=registry.attacks.names)
    eps: float = config.key(8 / 255, "Budget in units of the image range [0, 1], measured in `norm`.", decides=True)
    steps: int = config.key(20, "Gradient steps, for each target class and each constant.", decides=True)
    step_size: float | None = config.key(
        None, "Step of `pgd`; null: 2.5 eps / steps (Madry et al. 2018, section 5.2).", decides=True
    )
    random_start: bool = config.key(True, "Start from a random point of the norm ball.", decides=True)
    norm: str = config.key("Linf", "Norm in which `eps` is measured: Linf, L2, L1, spatial or patch.", decides=True)
    targets: int = config.key(
        9, "Classes that a targeted attack aims at, most likely first; at most all the others.", decides=True
    )
    queries: int = config.key(5000, "Forward passes of each image by `square` and `hard-label`.", decides=True)
    draws: int = config.key(50, "Random points that `noise` tries.", decides=True)
    constants: int = config.key(9, "Values of the constant c that `cw` tries, by bisection.", decides=True)

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown attack or norm, ValueError for a budget or effort out of range."""
        registry.attacks.require([self.name], "name")
        norms = registry.attacks.declared(self.name).norms
        if self.norm not in norms:
            raise ConfigError(f"norm: {self.norm!r} is not one of {self.name}'s: {nearest(self.norm, norms)}")
        if not 0 <= self.eps < float("inf") or (self.norm not in ("L2", "L1") and self.eps > 1):
            raise ValueError(f"eps: {self.eps} must be in [0, 1]; 8/255 may be written so")
        for key in ("steps", "targets", "queries", "draws", "constants"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1")
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise ValueError(f"step_size: {self.step_size} must be above 0, or null for 2.5 eps / steps")

    @classmethod
    def of_effort(cls, name: str, eps: float, effort: int) -> AttackConfig:
        """Attack `name` at an effort, under whichever key the attack counts it: steps, queries or draws."""
        registry.attacks.require([name], "name")
        values: dict[str, Any] = {registry.attacks.declared(name).effort or "steps": effort}
        return cls(name, eps, **values)

    @property
    def effort(self) -> int:
        """The attack's effort: its steps, queries or draws."""
        value: int = getattr(self, registry.attacks.declared(self.name).effort or "steps")
        return value

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the attacked images. The effort is always named `steps`, so that cached sets stay valid."""
        values = dataclasses.asdict(self) | {"steps": self.effort}
        del values["queries"], values["draws"]
        if self.constants == AttackConfig().constants:
            del values["constants"]
        return values

    @property
    def num_targets(self) -> int:
        """Number of classes that it aims at in turn; 1 if it is not targeted."""
        return self.targets if registry.attacks.declared(self.name).targeted else 1

    @property
    def label(self) -> str:
        """Short name for tables: FGSM, PGD-20, Square-5000, APGD-T-100x9."""
        declared = registry.attacks.declared(self.name)
        if declared.effort is None:
            return declared.label
        return f"{declared.label}-{self.effort}" + (f"x{self.targets}" if declared.targeted else "")
