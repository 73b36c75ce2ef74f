"""The space of a search: the values that each key may take, and how a searcher draws them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maep import config

Settings = dict[str, Any]
"""One value for each key of the space; a trial fixed by hand may have other keys."""


@dataclass(frozen=True)
class Axis:
    """The values of one key; exactly one of the four kinds is given."""

    choice: tuple[Any, ...] | None = config.key(
        None, "Any values of the key. Numbers in ascending order form a scale; others are unordered.", decides=True
    )
    uniform: tuple[float, float] | None = config.key(None, "Range of evenly drawn numbers.", decides=True)
    log_uniform: tuple[float, float] | None = config.key(
        None, "Range of numbers whose logarithm is evenly drawn.", decides=True
    )
    integer: tuple[int, int] | None = config.key(None, "Range of integers, both ends included.", decides=True)

    def __post_init__(self) -> None:
        """Raises ValueError for an axis without values, or of two kinds."""
        given = [name for name in ("choice", "uniform", "log_uniform", "integer") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of choice, uniform, log_uniform and integer, not {' and '.join(given) or 'none'}"
            )
        kind = given[0]
        if self.choice is not None:
            if not self.choice:
                raise ValueError("choice: must have at least one value")
            if any(self.choice[i] in self.choice[:i] for i in range(len(self.choice))):
                raise ValueError(f"choice: {list(self.choice)} has a value twice")
            return
        low, high = getattr(self, kind)
        if low > high or (low == high and kind != "integer"):
            raise ValueError(f"{kind}: [{low}, {high}] is empty: give the lower bound first")
        if kind == "log_uniform" and low <= 0:
            raise ValueError(f"log_uniform: {low} must be above 0")

    @property
    def values(self) -> Sequence[Any] | None:
        """All values in order; None for a continuous axis."""
        if self.choice is not None:
            return self.choice
        return range(self.integer[0], self.integer[1] + 1) if self.integer is not None else None

    @property
    def is_scale(self) -> bool:
        """Whether the values have an order."""
        if self.choice is None:
            return True
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.choice)
        return numbers and list(self.choice) == sorted(self.choice)

    def at(self, share: float) -> Any:
        """The value at `share` in [0, 1) of the axis: uniform shares give values of the axis's distribution."""
        if self.values is not None:
            return self.values[int(share * len(self.values))]
        if self.uniform is not None:
            low, high = self.uniform
            return low + share * (high - low)
        assert self.log_uniform is not None
        low, high = (math.log(end) for end in self.log_uniform)
        return math.exp(low + share * (high - low))


def size(space: Mapping[str, Axis]) -> int | None:
    """The number of settings; None where an axis is continuous."""
    counts = [None if axis.values is None else len(axis.values) for axis in space.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def grid(space: Mapping[str, Axis]) -> Iterator[Settings]:
    """Every setting of a finite space; the last key varies fastest."""
    columns = [axis.values for axis in space.values()]
    assert None not in columns
    for values in itertools.product(*(column for column in columns if column is not None)):
        yield dict(zip(space, values, strict=True))


def draw(space: Mapping[str, Axis], shares: Iterator[float]) -> Settings:
    """One setting from uniform `shares` in [0, 1), one for each key in turn."""
    return {key: axis.at(next(shares)) for key, axis in space.items()}


def setting_text(settings: Settings) -> str:
    """Settings for a sentence: mask_ratio 0.5, patch_size 4."""
    return ", ".join(f"{key} {value_text(value)}" for key, value in settings.items()) or "nothing varied"


def value_text(value: Any) -> str:
    """The value of one setting: a number in four digits, a section as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)


def axis_text(axis: Axis) -> str:
    """The values of an axis in words."""
    if axis.choice is not None:
        return ", ".join(value_text(value) for value in axis.choice)
    low, high = axis.uniform or axis.log_uniform or axis.integer or (0, 0)
    kind = "log-uniform" if axis.log_uniform else "integer" if axis.integer else "uniform"
    return f"{low:.4g} to {high:.4g}, {kind}"
