"""The map of a search: an objective over two settings, each cell with its interval, its images and its trials.

Only trials that trained to the end fill a cell: one that was stopped has spent less, so its figure compares with
nothing. What a map says in words (`verdict`) claims a difference only where two intervals do not touch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from maep.tune.metrics import estimates
from maep.tune.metrics.estimates import Estimate, finished, measure
from maep.tune.record import TrialRecord
from maep.tune.search.space import Axis
from maep.tune.trial.trial_config import NAMES

PREFERRED = ("mask_ratio", "patch_size")
"""The two that decide a purifier (of `trial_config.NAMES`); they make the map where both were searched."""
SEED = "seed"
"""A setting that makes a repeat and no other purifier."""
MOST_LEVELS = 8
"""Whole numbers of more values than this are put into ranges, as all that is not countable is."""
_RANGES = 6


@dataclass(frozen=True)
class Level:
    """A value of a setting, or a range of values [low, high), and how it is written."""

    label: str
    low: Any
    high: Any = None

    def holds(self, value: Any) -> bool:
        """Whether `value` belongs here."""
        return bool(value == self.low if self.high is None else self.low <= value < self.high)


@dataclass(frozen=True)
class Side:
    """One side of a map: a setting's key, and its levels in the order of the space."""

    key: str
    levels: tuple[Level, ...]

    def place(self, settings: dict[str, Any]) -> int | None:
        """The level of a trial's settings; None where it has not this one."""
        if self.key not in settings:
            return None
        return next((i for i, level in enumerate(self.levels) if level.holds(settings[self.key])), None)


@dataclass(frozen=True)
class Cell:
    """What stands at one place of the map.

    `trials` are those that `found` is of; `tried` counts all there, so that an empty place says why it is.
    """

    found: Estimate | None
    trials: tuple[TrialRecord, ...]
    tried: tuple[TrialRecord, ...]

    @property
    def why_empty(self) -> str:
        """For a cell without a value."""
        statuses = {trial.status for trial in self.tried}
        return "not tried" if not statuses else "stopped early" if "stopped" in statuses else "failed"


@dataclass(frozen=True)
class Map:
    """`cells[row][column]` of `y` and `x`; y is None where one setting was searched (then there is one row).

    `chosen` is True where trials of a cell differ in other settings too: then each cell is its best trial.
    `reference` are trials beside the space, such as another kind of purifier; of several kinds it is the best.
    """

    objective: str
    x: Side
    y: Side | None
    cells: tuple[tuple[Cell, ...], ...]
    reference: Cell | None
    chosen: bool

    @property
    def filled(self) -> list[Cell]:
        """The cells with a value, row by row, without the reference."""
        return [cell for row in self.cells for cell in row if cell.found is not None]

    @property
    def best(self) -> Cell | None:
        """The best cell; of equals the first."""
        sign = 1 if measure(self.objective).lower_is_better else -1
        return min(self.filled, key=lambda cell: sign * cell.found.value if cell.found else 0.0, default=None)

    def name(self, cell: Cell) -> str:
        """Where the cell is: mask_ratio 0.5, patch_size 4."""
        settings = cell.tried[0].settings
        sides = [side for side in (self.y, self.x) if side is not None]
        places = [(side, side.place(settings)) for side in sides]
        return ", ".join(f"{short(side.key)} {side.levels[i].label}" for side, i in places if i is not None)


def common_name(key: str) -> str:
    """The short name of a key that has one: mask_ratio for pretrain.mask_ratio; else the key itself."""
    return next((name for name, paths in NAMES.items() if key in (name, *paths)), key)


def short(key: str) -> str:
    """A dotted key's last part."""
    return key.rpartition(".")[2]


def choice(values: Sequence[Any]) -> Axis:
    """The axis of a setting that has these values, some of them several times; numbers in rising order."""
    different = [value for i, value in enumerate(values) if value not in values[:i]]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in different)
    return Axis(choice=tuple(sorted(different) if numbers else different))


def is_reference(trial: TrialRecord, space: Mapping[str, Axis]) -> bool:
    """Whether it stands beside the space: fixed by hand, without one of its keys or with another one."""
    return trial.settings.keys() - {SEED} != space.keys() - {SEED}


def keys(trials: Sequence[TrialRecord], space: Mapping[str, Axis]) -> list[str]:
    """The settings of more than one value among the trials, in the order of the space."""
    inside = [trial for trial in trials if not is_reference(trial, space)]
    return [key for key in space if key != SEED and len({repr(trial.settings[key]) for trial in inside}) > 1]


def pair(trials: Sequence[TrialRecord], space: Mapping[str, Axis]) -> list[str]:
    """The settings of the map, the rows' first: mask ratio and patch size, else the first two there are."""
    searched = keys(trials, space)
    wanted = [next((key for key in searched if common_name(key) == name), None) for name in PREFERRED]
    first = [key for key in wanted if key is not None]
    return [*first, *(key for key in searched if key not in first)][:2]


def side(key: str, kind: Axis, trials: Sequence[TrialRecord]) -> Side:
    """The levels of `key`: the values of its axis, and those that trials fixed by hand have beside them; or ranges."""
    tried = [trial.settings[key] for trial in trials]
    values = kind.values
    if values is not None and (kind.choice is not None or len(values) <= MOST_LEVELS):
        return Side(key, tuple(Level(_written(value), value) for value in choice([*values, *tried]).choice or ()))
    bounds = kind.uniform or kind.log_uniform or kind.integer
    assert bounds is not None
    low, high = min(bounds[0], *tried), max(bounds[1], *tried)
    edges = [_between(low, high, i / _RANGES, kind.log_uniform is not None) for i in range(_RANGES + 1)]
    labels = [f"{start:.2g}–{end:.2g}" for start, end in pairwise(edges)]
    ends = pairwise([*edges[:-1], math.nextafter(high, math.inf)])
    return Side(key, tuple(Level(label, *each) for label, each in zip(labels, ends, strict=True)))


def chart(trials: Sequence[TrialRecord], space: Mapping[str, Axis], objective: str, on: Sequence[str]) -> Map:
    """The map of `objective` over one or two keys of the space `on`, the rows' first."""
    inside = [trial for trial in trials if not is_reference(trial, space)]
    x = side(on[-1], space[on[-1]], inside)
    y = side(on[0], space[on[0]], inside) if len(on) > 1 else None
    placed: dict[tuple[int | None, int | None], list[TrialRecord]] = {}
    for trial in inside:
        where = 0 if y is None else y.place(trial.settings), x.place(trial.settings)
        placed.setdefault(where, []).append(trial)
    chosen = any(_differ(finished(group, objective)) for group in placed.values())
    cells = tuple(
        tuple(_cell(placed.get((row, column), []), objective, chosen) for column in range(len(x.levels)))
        for row in range(1 if y is None else len(y.levels))
    )
    beside = [trial for trial in trials if is_reference(trial, space)]
    reference = _cell(beside, objective, _differ(finished(beside, objective))) if beside else None
    return Map(objective, x, y, cells, reference, chosen)


def level_with_best(found: Map) -> list[Cell]:
    """The other cells whose interval touches the best one's: no difference from it is shown."""
    best = found.best
    assert best is not None
    assert best.found is not None
    return [c for c in found.filled if c is not best and c.found is not None and c.found.overlaps(best.found)]


def verdict(found: Map) -> str:
    """What the map says, in one or two sentences, and no more than that."""
    best, how = found.best, measure(found.objective)
    if best is None or best.found is None:
        return f"{how.words.capitalize()}: no trial trained to the end was measured by it, so the map is empty."
    word = "Lowest" if how.lower_is_better else "Highest"
    said = f"{word} {how.words}: {estimates.with_unit(best.found, found.objective)} at {found.name(best)}."
    others, level = len(found.filled) - 1, level_with_best(found)
    if not others:
        return f"{said} No other setting of the map trained to the end, so it is compared with nothing."
    if not best.found.count:
        return f"{said} Measured once for each trial, without an interval."
    if len(level) == others:
        return f"{said} No difference shown: the interval of every other cell overlaps this one's."
    if not level:
        return f"{said} It is apart from all {others} other cells: none of their intervals overlaps this one's."
    names = "; ".join(found.name(cell) for cell in level[:4]) + ("; …" if len(level) > 4 else "")
    return f"{said} No difference shown from {len(level)} of the {others} other cells ({names}): intervals overlap."


def _cell(trials: Sequence[TrialRecord], objective: str, chosen: bool) -> Cell:
    able = finished(trials, objective)
    if able and chosen:
        sign = 1 if measure(objective).lower_is_better else -1
        able = [min(able, key=lambda trial: (sign * trial.objectives[objective], trial.number))]
    return Cell(estimates.pooled(able, objective) if able else None, tuple(able), tuple(trials))


def _between(low: float, high: float, share: float, over_log: bool) -> float:
    return low * (high / low) ** share if over_log else low + share * (high - low)


def _written(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.4g}" if is_number else str(value)


def _differ(trials: Sequence[TrialRecord]) -> bool:
    """Whether they have different settings but for the seed: repeats have the same."""
    return len({repr(sorted((k, v) for k, v in trial.settings.items() if k != SEED)) for trial in trials}) > 1
