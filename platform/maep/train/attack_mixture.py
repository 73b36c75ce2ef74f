"""The attacked images of a training batch, as configured: shares of attacks, steps and budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maep import config, registry
from maep.attacks.config import AttackConfig
from maep.train.loss_config import Schedule, check_schedule


@dataclass(frozen=True)
class MixtureConfig:
    """One kind of attacked image in a training batch, made on the fly."""

    name: str = config.key(
        "pgd",
        """Attack in Linf; none: the clean image; n-fgsm (de Jorge et al. 2022, arXiv 2202.01181): one step from noise,
        for mode `trained` only.""",
        decides=True,
        choices=lambda: ["none", "n-fgsm", *registry.attacks.names()],
    )
    share: float = config.key(1.0, "Share in [0, 1] of the batch.", decides=True)
    steps: tuple[int, int] = config.key(
        (3, 5), "Range of the number of steps (queries, draws), drawn for each training step.", decides=True
    )

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        if self.name not in ("none", "n-fgsm"):
            AttackConfig(self.name)  # raises for a name that is not an attack in Linf
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: {self.share} must be in [0, 1]")
        if not 1 <= self.steps[0] <= self.steps[1]:
            raise ValueError(f"steps: {list(self.steps)} must be at least 1, the smaller first")


@dataclass(frozen=True)
class AttackMixConfig:
    """The attacked images of a training batch; attack and budget are drawn for each training step."""

    mode: Literal["oblivious", "adaptive", "trained"] = config.key(
        "oblivious",
        """oblivious: attack the bare classifier; adaptive: attack through purifier and classifier; trained: raise the
        loss that is trained.""",
        decides=True,
    )
    mixture: tuple[MixtureConfig, ...] = config.key(
        (MixtureConfig("fgsm", 0.4), MixtureConfig("pgd", 0.4), MixtureConfig("none", 0.2)),
        "Kinds of attacked images in a batch; the shares must add up to 1.",
        decides=True,
    )
    eps: float = config.key(8 / 255, "Budget in Linf, in units of the image range [0, 1].", decides=True)
    eps_range: tuple[float, float] | None = config.key(
        (2 / 255, 16 / 255),
        """Half of the steps draw their budget uniformly from this range instead of taking `eps`; null: none do. In mode
        `trained` every image draws its own.""",
        decides=True,
    )
    schedule: Schedule = config.key(
        (),
        "In mode `trained`: points [share of the run, factor of the budget], linear in between; empty: constant.",
        decides=True,
    )

    def __post_init__(self) -> None:
        """Raises ValueError for shares that do not add up to 1, and budgets outside [0, 1]."""
        for key, budgets in (("eps", (self.eps,)), ("eps_range", self.eps_range or (0.0, 0.0))):
            if not 0 <= budgets[0] <= budgets[-1] <= 1:
                raise ValueError(f"{key}: budgets must be in [0, 1], the smaller first, for example 8/255")
        check_schedule(self.schedule)
        names = {kind.name for kind in self.mixture}
        if self.mode == "trained" and not names <= {"none", "n-fgsm", "pgd"}:
            raise ValueError("mixture: mode trained has none, n-fgsm and pgd")
        if self.mode != "trained" and ("n-fgsm" in names or self.schedule):
            raise ValueError("n-fgsm and schedule need attacks.mode trained")
        total = sum(kind.share for kind in self.mixture)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"mixture: the shares must add up to 1, not {total:g}")
