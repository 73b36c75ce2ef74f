"""The terms of the purification loss, as configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maep import config, registry

Schedule = tuple[tuple[float, float], ...]
"""Points (share of the run, factor), linear in between."""


def factor_at(schedule: Schedule, progress: float) -> float:
    """The factor at share `progress` of the run; 1 without points."""
    if not schedule:
        return 1.0
    before = [point for point in schedule if point[0] <= progress]
    after = [point for point in schedule if point[0] > progress]
    if not before or not after:
        return (before[-1] if before else after[0])[1]
    (start, low), (end, high) = before[-1], after[0]
    return low + (high - low) * (progress - start) / (end - start)


def check_schedule(schedule: Schedule) -> None:
    """Raises ValueError for shares that do not rise within [0, 1], and for negative factors."""
    shares = [share for share, _ in schedule]
    if shares != sorted(shares) or any(not 0 <= share <= 1 for share in shares) or any(f < 0 for _, f in schedule):
        points = [list(point) for point in schedule]
        raise ValueError(f"schedule: {points} must be points [share, factor] of rising share in [0, 1]")


@dataclass(frozen=True)
class TermConfig:
    """One term of the loss."""

    weight: float = config.key(0.0, "Weight of the term; 0: left out.", decides=True)
    schedule: Schedule = config.key(
        (), "Points [share of the run, factor of the weight], linear in between; empty: constant.", decides=True
    )

    attacked: bool = config.key(True, "Whether attacks of mode `trained` raise this term.", decides=True)

    def __post_init__(self) -> None:
        """Raises ValueError for negative weights, and for shares that do not rise within [0, 1]."""
        if not self.weight >= 0:
            raise ValueError(f"weight: {self.weight} must not be negative")
        check_schedule(self.schedule)

    def at(self, progress: float) -> float:
        """The weight at share `progress` of the run."""
        return self.weight * factor_at(self.schedule, progress)


class _Terms:
    """The terms that are registered, with the classes that they are configured by."""

    names = staticmethod(registry.losses.names)

    @staticmethod
    def config_class(name: str) -> type:
        return registry.losses.declared(name).config or TermConfig

    @staticmethod
    def meaning(name: str) -> str:
        return registry.losses.declared(name).meaning


@dataclass(frozen=True)
class LossConfig:
    """Terms of the purification loss, each a mean over the batch. Pixels are compared in [0, 1]."""

    terms: dict[str, TermConfig] = config.named_sections(
        _Terms(),
        lambda: {"pixel": TermConfig(3.0), "masked": TermConfig(), "kl": TermConfig(0.5), "feature": TermConfig()},
    )
    """The terms by name (maep.train.losses); each name is a key of the section: `loss.pixel.weight`."""
    pixel_norm: Literal["l1", "l2", "rms"] = config.key(
        "l1", "Distance in `pixel`: mean absolute, mean squared, or root mean square of each image.", decides=True
    )
    masked_ratio: float = config.key(0.5, "Share in (0, 1) of the patches that `masked` hides.", decides=True)
    teacher: Literal["first", "attacked"] = config.key(
        "first",
        "Teacher of features and outputs: the first of `classifiers`, or the one attacked in the step.",
        decides=True,
    )

    def __post_init__(self) -> None:
        """Raises ValueError for a loss without a term, and for masks that hide nothing or everything."""
        registry.losses.require(self.terms, "loss")
        if not any(term.weight for term in self.terms.values()):
            raise ValueError(f"give at least one of {', '.join(self.terms)} a weight above 0")
        if not 0 < self.masked_ratio < 1:
            raise ValueError(f"masked_ratio: {self.masked_ratio} must be between 0 and 1")
