"""The map of a search: an objective over two settings, each cell with its interval, images and trials.

Only trials that trained to the end fill a cell: a stopped one has spent less, so its value is not comparable. The
verdict claims a difference only where two intervals do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from maep.tune.metrics import estimates
from maep.tune.metrics.estimates import Estimate, finished, metric
from maep.tune.record import TrialRecord
from maep.tune.search.space import Axis, value_text
from maep.tune.trial.trial import NAMES

PREFERRED = ("mask_ratio", "patch_size")
"""The preferred settings of the map (names of `trial.NAMES`)."""
SEED = "seed"
"""The setting whose values are only repeats of a trial."""
MOST_VALUES = 8
"""An integer setting with more values is binned, as a continuous one always is."""
_NUM_BINS = 6


@dataclass(frozen=True)
class Bin:
    """One value of a setting, or the values in [low, high), and the label on the axis."""

    label: str
    low: Any
    high: Any = None

    def holds(self, value: Any) -> bool:
        """Whether `value` is in this bin."""
        return bool(value == self.low if self.high is None else self.low <= value < self.high)


@dataclass(frozen=True)
class MapAxis:
    """One axis of a map: a setting's key and its bins in order."""

    key: str
    bins: tuple[Bin, ...]

    def place(self, settings: dict[str, Any]) -> int | None:
        """The number of the bin that a trial's settings are in; None where they lack the key."""
        if self.key not in settings:
            return None
        return next((i for i, each in enumerate(self.bins) if each.holds(settings[self.key])), None)


@dataclass(frozen=True)
class Cell:
    """A cell of the map: `found` is the estimate from `trials`; `tried` are all trials with these settings."""

    found: Estimate | None
    trials: tuple[TrialRecord, ...]
    tried: tuple[TrialRecord, ...]

    @property
    def why_empty(self) -> str:
        """The reason why the cell has no value."""
        statuses = {trial.status for trial in self.tried}
        return "not tried" if not statuses else "stopped early" if "stopped" in statuses else "failed"


@dataclass(frozen=True)
class Map:
    """`cells[row][column]` over `y` and `x`; y is None, with one row, where only one setting was searched.

    `chosen` is True where trials of a cell differ in other settings too: then each cell shows its best trial.
    `reference` holds trials outside the space, such as another kind of purifier; of several kinds, the best.
    """

    objective: str
    x: MapAxis
    y: MapAxis | None
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
        sign = 1 if metric(self.objective).lower_is_better else -1
        return min(self.filled, key=lambda cell: sign * cell.found.value if cell.found else 0.0, default=None)

    def name(self, cell: Cell) -> str:
        """The settings of the cell: mask_ratio 0.5, patch_size 4."""
        axes = [axis for axis in (self.y, self.x) if axis is not None]
        places = [(axis, axis.place(cell.tried[0].settings)) for axis in axes]
        return ", ".join(f"{short(axis.key)} {axis.bins[i].label}" for axis, i in places if i is not None)


def common_name(key: str) -> str:
    """The short name of a key, mask_ratio for pretrain.mask_ratio, or the key itself."""
    return next((name for name, paths in NAMES.items() if key in (name, *paths)), key)


def short(key: str) -> str:
    """A dotted key's last part."""
    return key.rpartition(".")[2]


def choice(values: Sequence[Any]) -> Axis:
    """The axis of a setting with these values, repeats removed; numbers in ascending order."""
    different = [value for i, value in enumerate(values) if value not in values[:i]]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in different)
    return Axis(choice=tuple(sorted(different) if numbers else different))


def is_reference(trial: TrialRecord, space: Mapping[str, Axis]) -> bool:
    """Whether the trial is outside the space: its settings have other keys."""
    return trial.settings.keys() - {SEED} != space.keys() - {SEED}


def keys(trials: Sequence[TrialRecord], space: Mapping[str, Axis]) -> list[str]:
    """The settings with several values among the trials, in the order of the space."""
    inside = [trial for trial in trials if not is_reference(trial, space)]
    return [key for key in space if key != SEED and len({repr(trial.settings[key]) for trial in inside}) > 1]


def map_keys(trials: Sequence[TrialRecord], space: Mapping[str, Axis]) -> list[str]:
    """The settings of the map, that of the rows first: mask ratio and patch size, else the first two."""
    searched = keys(trials, space)
    wanted = [next((key for key in searched if common_name(key) == name), None) for name in PREFERRED]
    first = [key for key in wanted if key is not None]
    return [*first, *(key for key in searched if key not in first)][:2]


def map_axis(key: str, kind: Axis, trials: Sequence[TrialRecord]) -> MapAxis:
    """The bins of `key`: each value of the space and of the trials, or ranges."""
    tried = [trial.settings[key] for trial in trials]
    values = kind.values
    if values is not None and (kind.choice is not None or len(values) <= MOST_VALUES):
        return MapAxis(key, tuple(Bin(value_text(value), value) for value in choice([*values, *tried]).choice or ()))
    bounds = kind.uniform or kind.log_uniform or kind.integer
    assert bounds is not None
    low, high = min(bounds[0], *tried), max(bounds[1], *tried)
    shares = [i / _NUM_BINS for i in range(_NUM_BINS + 1)]
    edges = [low * (high / low) ** share if kind.log_uniform else low + share * (high - low) for share in shares]
    labels = [f"{start:.2g}–{end:.2g}" for start, end in pairwise(edges)]
    ends = pairwise([*edges[:-1], math.nextafter(high, math.inf)])
    return MapAxis(key, tuple(Bin(label, *each) for label, each in zip(labels, ends, strict=True)))


def make_map(trials: Sequence[TrialRecord], space: Mapping[str, Axis], objective: str, on: Sequence[str]) -> Map:
    """The map of `objective` over one or two keys of the space, that of the rows first."""
    inside = [trial for trial in trials if not is_reference(trial, space)]
    x = map_axis(on[-1], space[on[-1]], inside)
    y = map_axis(on[0], space[on[0]], inside) if len(on) > 1 else None
    placed: dict[tuple[int | None, int | None], list[TrialRecord]] = {}
    for trial in inside:
        where = 0 if y is None else y.place(trial.settings), x.place(trial.settings)
        placed.setdefault(where, []).append(trial)
    chosen = any(_differ(finished(group, objective)) for group in placed.values())
    cells = tuple(
        tuple(_cell(placed.get((row, column), []), objective, chosen) for column in range(len(x.bins)))
        for row in range(1 if y is None else len(y.bins))
    )
    beside = [trial for trial in trials if is_reference(trial, space)]
    reference = _cell(beside, objective, _differ(finished(beside, objective))) if beside else None
    return Map(objective, x, y, cells, reference, chosen)


def level_with_best(found: Map) -> list[Cell]:
    """The cells whose interval overlaps that of the best one: no difference is shown."""
    best = found.best
    assert best is not None
    assert best.found is not None
    return [c for c in found.filled if c is not best and c.found is not None and c.found.overlaps(best.found)]


def verdict(found: Map) -> str:
    """What the map shows, in one or two sentences."""
    best, how = found.best, metric(found.objective)
    if best is None or best.found is None:
        return f"{how.words.capitalize()}: the map is empty, no measured trial trained to the end."
    word = "Lowest" if how.lower_is_better else "Highest"
    said = f"{word} {how.words}: {estimates.with_unit(best.found, found.objective)} at {found.name(best)}."
    others, level = len(found.filled) - 1, level_with_best(found)
    if not others:
        return f"{said} No other cell has a finished trial to compare with."
    if not best.found.count:
        return f"{said} Measured once per trial, without an interval."
    if len(level) == others:
        return f"{said} No difference shown: the intervals of all other cells overlap it."
    if not level:
        return f"{said} It differs from all {others} other cells: no interval overlaps."
    names = "; ".join(found.name(cell) for cell in level[:4]) + ("; …" if len(level) > 4 else "")
    return f"{said} No difference shown from {len(level)} of {others} other cells, whose intervals overlap: {names}."


def _cell(trials: Sequence[TrialRecord], objective: str, chosen: bool) -> Cell:
    able = finished(trials, objective)
    if able and chosen:
        sign = 1 if metric(objective).lower_is_better else -1
        able = [min(able, key=lambda trial: (sign * trial.objectives[objective], trial.number))]
    return Cell(estimates.pooled(able, objective) if able else None, tuple(able), tuple(trials))


def _differ(trials: Sequence[TrialRecord]) -> bool:
    """Whether settings other than the seed differ."""
    return len({repr(sorted((k, v) for k, v in trial.settings.items() if k != SEED)) for trial in trials}) > 1
