"""Statistics of two purifiers on the same images: exact test, interval of the difference, correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maep.errors import ConfigError
from maep.evaluate.results.summary import interval


@dataclass(frozen=True)
class Paired:
    """Outcomes of A and B on the same images: how many only A gets right, how many only B, and the exact p."""

    won: int
    lost: int
    p_value: float


def mcnemar(a: Mapping[int, bool], b: Mapping[int, bool]) -> Paired:
    """The exact two-sided test of McNemar (1947) over images (official index -> right)."""
    from scipy.stats import binomtest

    if a.keys() != b.keys() or not a:
        raise ConfigError(f"different images: A has {len(a)}, B has {len(b)}: evaluate both on the same list")
    won = sum(right and not b[index] for index, right in a.items())
    lost = sum(right and not a[index] for index, right in b.items())
    p_value = float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0
    return Paired(won, lost, p_value)


def difference_interval(both: int, a_only: int, b_only: int, neither: int) -> tuple[float, float]:
    """95 % interval of P(A) - P(B) from counts of pairs; Newcombe (1998), method 10.

    Combines the Wilson intervals of both shares by the correlation phi of the pairs, whose numerator is corrected for
    continuity where it is positive.
    """
    total = both + a_only + b_only + neither
    shares = (both + a_only) / total, (both + b_only) / total
    (low_a, high_a), (low_b, high_b) = (interval(both + only, total) for only in (a_only, b_only))
    margins = (both + a_only) * (b_only + neither) * (both + b_only) * (a_only + neither)
    cross = both * neither - a_only * b_only
    corrected = max(cross - total / 2, 0.0) if cross > 0 else float(cross)
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))

    difference = shares[0] - shares[1]
    below = reach(shares[0] - low_a, high_b - shares[1])
    above = reach(high_a - shares[0], shares[1] - low_b)
    return max(difference - below, -1.0), min(difference + above, 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction, in the order given: family-wise error rate over all tests."""
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = floor
    return adjusted
