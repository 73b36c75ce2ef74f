"""What an attack is made of: its name, norm, budget and effort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from maep import config

AttackName = Literal[
    "fgsm", "pgd", "pgd-cw", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "hard-label", "cw", "spatial",
    "patch", "noise",
]  # fmt: skip
Norm = Literal["Linf", "L2", "L1", "spatial", "patch"]

NORMS: dict[AttackName, tuple[Norm, ...]] = {
    "fgsm": ("Linf",),
    "pgd": ("Linf", "L2", "L1"),
    "pgd-cw": ("Linf", "L2", "L1"),
    "apgd-ce": ("Linf", "L2", "L1"),
    "apgd-dlr": ("Linf", "L2", "L1"),
    "apgd-t": ("Linf", "L2", "L1"),
    "fab-t": ("Linf", "L2", "L1"),
    "square": ("Linf", "L2"),
    "hard-label": ("Linf",),
    "cw": ("L2",),
    "spatial": ("spatial",),
    "patch": ("patch",),
    "noise": ("Linf", "L2"),
}
"""The norms in which each attack can measure its budget, the usual one first."""

_LABELS: dict[AttackName, str] = {"pgd-cw": "CW-PGD", "hard-label": "hard label", "cw": "C&W"}
_NO_STEPS = ("fgsm", "spatial")


@dataclass(frozen=True)
class AttackConfig:
    """One attack. `eps` and `step_size` are in units of the image range [0, 1], measured in `norm`.

    In L2 and L1, `eps` is of the whole image (0.5 in L2 is usual for 32 x 32). For `spatial` it is the largest
    shift as a share of the side, with the rotation of 30 degrees at 0.1 and in proportion; for `patch`, the side of
    the square that may be painted as a share of the image's.
    """

    name: AttackName = config.key("pgd", "The attack.", decides=True)
    eps: float = config.key(8 / 255, "Budget in units of the image range [0, 1], measured in `norm`.", decides=True)
    steps: int = config.key(
        20,
        """Gradient steps; for `square` and `hard-label` queries, for `noise` draws; for each target class, and for each
        of C&W's nine constants. `fgsm` and `spatial` ignore it.""",
        decides=True,
    )
    step_size: float | None = config.key(
        None, "Step of `pgd`; null: 2.5 eps / steps (Madry et al. 2018, section 5.2).", decides=True
    )
    random_start: bool = config.key(True, "Start from a random point of the norm ball.", decides=True)
    norm: Norm = config.key("Linf", "Norm in which `eps` is measured.", decides=True)
    targets: int = config.key(
        9, "Classes that a targeted attack aims at, most likely first; at most all the others.", decides=True
    )

    def __post_init__(self) -> None:
        """Refuses budgets that the norm does not have, attacks of no steps, and norms that the attack does not know."""
        if self.name not in NORMS:  # a configuration's loader has refused it before; this is for callers in Python
            raise ValueError(f"name: {self.name!r} is no attack; known: {', '.join(get_args(AttackName))}")
        if self.norm not in NORMS[self.name]:
            raise ValueError(f"norm: {self.name} knows {', '.join(NORMS[self.name])}, not {self.norm}")
        if not 0 <= self.eps < float("inf") or (self.norm not in ("L2", "L1") and self.eps > 1):
            raise ValueError(f"eps: {self.eps} must be in [0, 1]; 8/255 may be written so")
        if self.steps < 1 or self.targets < 1:
            raise ValueError(f"steps: {self.steps} and targets: {self.targets} must be at least 1")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"step_size: {self.step_size} must be above 0, or null for 2.5 eps / steps")

    @property
    def label(self) -> str:
        """Short name for tables: FGSM, PGD-20, APGD-CE-50, APGD-T-100x9."""
        name = _LABELS.get(self.name, self.name.upper() if self.name not in ("spatial", "patch", "noise", "square")
                           else self.name.capitalize())  # fmt: skip
        if self.name in _NO_STEPS:
            return name
        aimed = f"x{self.targets}" if self.name in ("apgd-t", "fab-t") else ""
        return f"{name}-{self.steps}{aimed}"
