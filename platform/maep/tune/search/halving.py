"""Successive halving on images seen: who goes on past a rung (Jamieson and Talwalkar 2016, arXiv 1502.07943).

ASHA (Li et al. 2020, arXiv 1810.05934) decides as soon as one trial arrives, by the values that happen to be there: its
decisions follow from the machine's timing, and a search that was killed could not be gone on with as the one it was.
Here a generation of trials pauses at the rung, none of them holding a processor, until the last has arrived, and is
then compared with every trial that was ever measured there, this generation's and all earlier ones'. So ASHA's
advantage stays, that a poor generation ends at its first rung; and what is decided follows from what was measured,
in whatever order and on however many machines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from maep.errors import ConfigError

Values = tuple[float, ...]
"""One number for each objective; more is better."""


def goes_on(arrived: Mapping[int, Values], earlier: Mapping[int, Values], factor: int) -> set[int]:
    """Which of the trials that `arrived` at a rung (by number) are among the best 1 / `factor` ever measured there.

    At least one of a first generation goes on. With several objectives, those that fewer others beat in all of them
    come first (non-dominated sorting, Deb et al. 2002), then the better in the first objective; ties go to the lower
    number.
    """
    everyone = {**earlier, **arrived}
    places = math.ceil(len(everyone) / factor)
    return set(ranked(everyone)[:places]) & set(arrived)


def ranked(values: Mapping[int, Values]) -> list[int]:
    """The numbers, best first."""
    fronts = _fronts(values)
    return sorted(values, key=lambda number: (fronts[number], *(-value for value in values[number]), number))


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better."""
    return tuple(one) != tuple(other) and all(a >= b for a, b in zip(one, other, strict=True))


def _fronts(values: Mapping[int, Values]) -> dict[int, int]:
    """Which front each stands in: 0 that of those whom none dominates, 1 the same without those, and so on."""
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
    """Images of fine-tuning at each rung, in whole batches. Raises ConfigError where there are too few for so many."""
    num_steps = samples // batch_size
    steps = [round(num_steps / factor ** (num_rungs - 1 - rung)) for rung in range(num_rungs)]
    if steps[0] < 1 or len(set(steps)) < num_rungs:
        raise ConfigError(
            f"budget.amount: leaves {num_steps} batches of {batch_size} for fine-tuning, too few for {num_rungs} rungs:"
            " raise it, or lower halving.num_rungs"
        )
    return [step * batch_size for step in steps]
