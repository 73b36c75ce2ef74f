"""What the sanity battery finds: checks, which decide whether a result is reliable, and flags, which only warn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TOLERANCE = 0.01
"""One point, for more effort that by chance finds less; on few images, one image."""
CHANCE = 0.01
"""What a randomised model's draws explain with at least this probability is not held against it."""


@dataclass(frozen=True)
class Check:
    """One check: whether it held, and one line that says what was seen."""

    name: str
    passed: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Flag:
    """A warning: one line that says what was seen and what it calls for. It makes no result unreliable."""

    name: str
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Ready for JSON."""
        return {"name": self.name, "detail": self.detail}


def failures(checks: Iterable[Check]) -> list[str]:
    """One line for each check that failed."""
    return [f"{check.name}: {check.detail}" for check in checks if not check.passed]


def risen(before: Sequence[bool], after: Sequence[bool], randomised: bool, tolerance: float = TOLERANCE) -> bool:
    """Whether more images stand `after` than `before` (the same images in the same order).

    By more than `tolerance` (a share of the images) and one image; of a randomised model also by more than chance.
    """
    if sum(after) - sum(before) <= max(tolerance * len(before), 1) + 1e-9:
        return False
    return not (randomised and by_chance(before, after))


def by_chance(before: Sequence[bool], after: Sequence[bool]) -> bool:
    """Whether draws alone may have left as many more standing `after`: the sign test of those gained against lost."""
    from scipy.stats import binomtest  # half a second to import, and only needed for what is randomised

    gained = sum(new > old for old, new in zip(before, after, strict=True))
    lost = sum(new < old for old, new in zip(before, after, strict=True))
    return gained <= lost or bool(binomtest(gained, gained + lost, alternative="greater").pvalue >= CHANCE)
