"""What an attack is made of: its name, budget and effort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AttackName = Literal["fgsm", "pgd", "apgd-ce"]


@dataclass(frozen=True)
class AttackConfig:
    """One Linf attack. `eps` and `step_size` are in units of the image range [0, 1]."""

    name: AttackName = "pgd"
    eps: float = 8 / 255
    steps: int = 20
    step_size: float | None = None
    """PGD's step, None: 2.5 eps / steps (Madry et al. 2018, section 5.2). FGSM steps by eps, APGD by itself."""
    random_start: bool = True

    def __post_init__(self) -> None:
        """Refuses budgets outside [0, 1] and attacks of no steps."""
        if not 0 <= self.eps <= 1:
            raise ValueError(f"eps: {self.eps} must be in [0, 1]; 8/255 may be written so")
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps} must be at least 1")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"step_size: {self.step_size} must be above 0, or null for 2.5 eps / steps")

    @property
    def label(self) -> str:
        """Short name for tables: FGSM, PGD-20, APGD-CE-50."""
        return "FGSM" if self.name == "fgsm" else f"{self.name.upper()}-{self.steps}"
