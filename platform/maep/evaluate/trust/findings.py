"""Findings of the sanity battery, and the test of whether one count of right images exceeds another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 0.01
"""Share of the images (at least one image) by which a stronger attack may find less."""
CHANCE = 0.01
"""A difference that random draws explain with at least this probability is not a finding."""


@dataclass(frozen=True)
class Check:
    """One property, whether it held, and what was measured. A failed check makes a result `unreliable`."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Flag:
    """A warning: what was measured and what to do about it. The result stays reliable."""

    name: str
    detail: str


def risen(before: Sequence[bool], after: Sequence[bool], randomised: bool, tolerance: float = TOLERANCE) -> bool:
    """Whether more images are right `after` than `before` (the same images in the same order).

    The excess must be more than `tolerance` (a share of the images) and more than one image; for a randomised model it
    must also exceed chance.
    """
    if sum(after) - sum(before) <= max(tolerance * len(before), 1) + 1e-9:
        return False
    return not (randomised and by_chance(before, after))


def by_chance(before: Sequence[bool], after: Sequence[bool]) -> bool:
    """Whether random draws alone may explain the gain (sign test on images gained and images lost)."""
    from scipy.stats import binomtest  # takes half a second to import, and only randomised models need it

    gained = sum(new > old for old, new in zip(before, after, strict=True))
    lost = sum(new < old for old, new in zip(before, after, strict=True))
    return gained <= lost or bool(binomtest(gained, gained + lost, alternative="greater").pvalue >= CHANCE)
