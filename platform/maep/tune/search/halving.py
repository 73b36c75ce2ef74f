"""Successive halving by images seen: which trials are promoted past a rung (Jamieson and Talwalkar 2016, 1502.07943).

ASHA (Li et al. 2020, arXiv 1810.05934) decides as soon as a trial arrives, from the values known at that moment, so its
decisions depend on timing and a killed search cannot be resumed exactly. Here a generation pauses at the rung, holding
no processor, until its last trial arrives, and is then compared with every trial ever measured there. As with ASHA a
poor generation ends at its first rung, but decisions depend only on the measured values, not on order or machines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from maep.errors import ConfigError

Values = tuple[float, ...]
"""One number per objective, higher is better."""


def promoted(arrived: Mapping[int, Values], earlier: Mapping[int, Values], factor: int) -> set[int]:
    """The trials (by number) that `arrived` at a rung and are among the best 1 / `factor` ever measured there.

    At least one trial of the first generation is promoted. Several objectives are ranked by non-dominated sorting (Deb
    et al. 2002), then by the first objective; ties go to the lower number.
    """
    everyone = {**earlier, **arrived}
    places = math.ceil(len(everyone) / factor)
    return set(ranked(everyone)[:places]) & set(arrived)


def ranked(values: Mapping[int, Values]) -> list[int]:
    """Trial numbers, best first."""
    fronts = _fronts(values)
    return sorted(values, key=lambda number: (fronts[number], *(-value for value in values[number]), number))


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is at least as good as `other` everywhere and better somewhere."""
    return tuple(one) != tuple(other) and all(a >= b for a, b in zip(one, other, strict=True))


def _fronts(values: Mapping[int, Values]) -> dict[int, int]:
    """Trial number -> its front: 0 where no trial dominates it, 1 where none does without front 0, and so on."""
    found: dict[int, int] = {}
    left, front = dict(values), 0
    while left:
        first = [n for n, mine in left.items() if not any(dominates(other, mine) for other in left.values())]
        for number in first:
            found[number] = front
            del left[number]
        front += 1
    return found


def levels(samples: int, batch_size: int, num_rungs: int, factor: int) -> list[int]:
    """Images of fine-tuning at each rung, in whole batches. Raises ConfigError where batches are too few."""
    num_steps = samples // batch_size
    steps = [round(num_steps / factor ** (num_rungs - 1 - rung)) for rung in range(num_rungs)]
    if steps[0] < 1 or len(set(steps)) < num_rungs:
        raise ConfigError(
            f"budget.amount: leaves {num_steps} batches of {batch_size} for fine-tuning, too few for {num_rungs} rungs:"
            " raise it or lower halving.num_rungs"
        )
    return [step * batch_size for step in steps]
