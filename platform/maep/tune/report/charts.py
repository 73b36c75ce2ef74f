"""The charts of a search: the heat map, each cell with value, interval, images and trials, and the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from maep.evaluate.report.drawing import COLOURS, EMPTY, SOFT, canvas, distances, legend
from maep.tune.metrics import estimates
from maep.tune.metrics.estimates import Estimate, estimate, metric
from maep.tune.record import TrialRecord
from maep.tune.report.maps import Cell, Map, common_name, level_with_best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXIS_LABELS = {"mask_ratio": "mask ratio in training", "patch_size": "patch size, pixels"}
"""Axis labels of settings; any other setting is labelled by its key."""
BEST, LEVEL = "★", "≈"
"""The mark of the best cell, and of cells whose interval overlaps it."""
_REFERENCE_GAP = 1.25
_Shade = Callable[[float], tuple[float, ...]]


def axis_label(key: str) -> str:
    """The axis label of a setting."""
    return AXIS_LABELS.get(common_name(key), key)


def heat_map(found: Map) -> Figure:
    """The cells, with the reference beside them. Colours span the intervals, so differences within noise look alike."""
    columns, rows = len(found.x.bins), len(found.cells)
    right = columns - 0.5 + (_REFERENCE_GAP if found.reference else 0)
    ticks: dict[float, str] = {column: each.label for column, each in enumerate(found.x.bins)}
    with canvas(2.6 + 1.45 * right, 1.6 + 0.95 * rows) as (figure, axes):
        shade, level = _shades(found), level_with_best(found) if found.best else []
        for row, cells in enumerate(found.cells):
            for column, cell in enumerate(cells):
                mark = BEST if cell is found.best else LEVEL if any(cell is each for each in level) else ""
                _draw(axes, found, cell, column, row, shade, mark)
        if found.reference is not None:
            _draw(axes, found, found.reference, columns - 1 + _REFERENCE_GAP, 0, shade, "")
            ticks[columns - 1 + _REFERENCE_GAP] = "reference"
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_yticks(range(rows) if found.y else [], [each.label for each in found.y.bins] if found.y else [])
        axes.set(xlim=(-0.5, right), ylim=(rows - 0.5, -0.5), xlabel=axis_label(found.x.key))
        axes.set_ylabel(axis_label(found.y.key) if found.y else "")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(metric(found.objective).label, pad=24)
        axes.text(0, 1, _key(found), transform=axes.transAxes, fontsize=8, color=SOFT, va="bottom")
    return figure


def _shades(found: Map) -> _Shade:
    """The colour of a value, on a scale that spans the intervals rather than the values."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    shown = [cell.found for cell in [*found.filled, *([found.reference] if found.reference else [])] if cell.found]
    low, high = min((f.low for f in shown), default=0.0), max((f.high for f in shown), default=1.0)
    scale = Normalize(low, high if high > low else low + 1)
    colours = colormaps["cividis_r" if metric(found.objective).lower_is_better else "cividis"]
    return lambda value: colours(float(scale(value)))


def _draw(axes: Axes, found: Map, cell: Cell, column: float, row: int, shade: _Shade, mark: str) -> None:
    from matplotlib.patches import Rectangle

    corner = column - 0.48, row - 0.47
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    if cell.found is None:
        axes.add_patch(Rectangle(corner, 0.96, 0.94, facecolor=EMPTY, linewidth=0))
        axes.text(column, row, cell.why_empty, color=SOFT, fontsize=8.5, **middle)
        return
    colour, is_best = shade(cell.found.value), mark == BEST
    ink = "white" if _luminance(colour) < 0.179 else "black"  # a contrast above 4.5 either way
    edge: dict[str, Any] = {"edgecolor": COLOURS[1], "linewidth": 2.5} if is_best else {"linewidth": 0}
    axes.add_patch(Rectangle(corner, 0.96, 0.94, facecolor=colour, zorder=2 if is_best else 1, **edge))
    value, _, brackets = estimates.text(cell.found, found.objective).partition(" ")
    lines = [line for line in (brackets, _sizes(cell, cell.found)) if line]
    up = 0.22 if lines else 0.0
    text = f"{mark} {value}".strip()
    axes.text(column, row - up, text, color=ink, fontsize=12, fontweight="bold", zorder=3, **middle)
    axes.text(column, row + 0.16, "\n".join(lines), color=ink, fontsize=8, zorder=3, **middle)


def _key(found: Map) -> str:
    """How to read the cells, for a reader of the picture alone."""
    if not any(cell.found and cell.found.count for cell in found.filled):
        return f"{BEST} best"
    return f"[95 % interval over n dev images]   {BEST} best   {LEVEL} interval overlaps: no difference shown"


def _sizes(cell: Cell, found: Estimate) -> str:
    seeds, done = len({trial.seed for trial in cell.trials}), sum(trial.status == "done" for trial in cell.tried)
    runs = f"{seeds} seeds" if seeds > 1 else f"best of {done}" if done > len(cell.trials) else ""
    return ", ".join(filter(None, (f"n = {found.count:,}" if found.count else "", runs)))


def _luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance (WCAG 2.1) of red, green and blue in [0, 1]."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def front(trials: Sequence[TrialRecord], on_front: Sequence[TrialRecord], x: str, y: str) -> Figure:
    """Finished trials by two objectives; those on the Pareto front are joined, and numbered where there are few."""
    names = {trial.trial_id for trial in on_front}
    kept = sorted(on_front, key=lambda trial: (_scaled(trial, x), _scaled(trial, y)))
    beaten = [trial for trial in trials if trial.trial_id not in names]
    corner = [
        -1 if metric(name).lower_is_better else 1 for name in (x, y)
    ]  # labels go towards the better corner, where no trial is
    with canvas(6.4, 4.2) as (figure, axes):
        for group, marker, colour, label in ((beaten, "o", SOFT, "dominated"), (kept, "D", COLOURS[1], "Pareto front")):
            if group:
                (across, *wide), (up, *high) = _estimates(group, x), _estimates(group, y)
                face = "none" if group is beaten else colour
                axes.errorbar(
                    across, up, distances(up, *high), distances(across, *wide), marker, color=colour, label=label,
                    ecolor=(colour, 0.35), elinewidth=1, markersize=5, markerfacecolor=face,
                )  # fmt: skip
        step = "steps-post" if corner[0] < 0 else "steps-pre"
        axes.plot(*([_scaled(t, name) for t in kept] for name in (x, y)), color=COLOURS[1], alpha=0.6, drawstyle=step)
        for trial in kept if len(kept) <= 12 else []:
            axes.annotate(
                f"{trial.number}", (_scaled(trial, x), _scaled(trial, y)), (5 * corner[0], 5 * corner[1]),
                textcoords="offset points", fontsize=9,
                ha="right" if corner[0] < 0 else "left", va="top" if corner[1] < 0 else "bottom",
            )  # fmt: skip
        labels = [f"{m.label} ({'lower' if m.lower_is_better else 'higher'} is better)" for m in map(metric, (x, y))]
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.grid(alpha=0.2)
        legend(axes, 2)
    return figure


def _scaled(trial: TrialRecord, objective: str) -> float:
    return metric(objective).scale * trial.objectives[objective]


def _estimates(trials: Sequence[TrialRecord], objective: str) -> tuple[list[float], list[float], list[float]]:
    """Values, lower and upper bounds in the unit of the axis."""
    scale, found = metric(objective).scale, [estimate(trial, objective) for trial in trials]
    return [scale * f.value for f in found], [scale * f.low for f in found], [scale * f.high for f in found]
