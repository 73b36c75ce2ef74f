"""What attacked images a training batch is made of: shares of kinds, steps and budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MixtureConfig:
    """One kind of attacked image in a training batch, made on the fly."""

    name: Literal["none", "fgsm", "pgd", "apgd-ce"] = "pgd"
    share: float = 1.0
    steps: tuple[int, int] = (3, 5)
    """Least and most steps; drawn anew each training step."""

    def __post_init__(self) -> None:
        """Refuses shares and steps that are none."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: {self.share} must be in [0, 1]")
        if not 1 <= self.steps[0] <= self.steps[1]:
            raise ValueError(f"steps: {list(self.steps)} must be at least 1, the lesser first")


@dataclass(frozen=True)
class AttackMixConfig:
    """The attacked images of a training batch: shares of kinds, and the budget drawn for each training step."""

    mode: Literal["oblivious", "adaptive"] = "oblivious"
    """Whether the attack goes through the bare classifier, or through purifier and classifier."""
    mixture: tuple[MixtureConfig, ...] = (
        MixtureConfig("fgsm", 0.4),
        MixtureConfig("pgd", 0.4),
        MixtureConfig("none", 0.2),
    )
    eps: float = 8 / 255
    eps_range: tuple[float, float] | None = (2 / 255, 16 / 255)
    """Half of the steps draw their budget evenly from here instead of taking `eps`; null: none do."""

    def __post_init__(self) -> None:
        """Refuses shares that are not a whole, and budgets outside [0, 1]."""
        for key, budgets in (("eps", (self.eps,)), ("eps_range", self.eps_range or (0.0, 0.0))):
            if not 0 <= budgets[0] <= budgets[-1] <= 1:
                raise ValueError(f"{key}: budgets are in [0, 1], the lesser first; 8/255 may be written so")
        total = sum(kind.share for kind in self.mixture)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"mixture: the shares must add up to 1, not {total:g}")
