"""The map of a search as a picture: cells with value, interval, images and trials."""

from __future__ import annotations

from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from maep.evaluate.report.drawing import COLOURS, EMPTY, SOFT, canvas
from maep.tune.metrics import estimates
from maep.tune.metrics.estimates import measure
from maep.tune.report.drawing import axis_label
from maep.tune.report.maps import Cell, Map, Side, level_with_best

BEST, LEVEL = "★", "≈"
"""Marks the best cell; marks those whose interval overlaps its own."""


def heat_map(found: Map) -> Figure:
    """Cells with value, interval, images and trials. One colour step is one of the interval's: noise looks level."""
    columns, rows = len(found.x.levels), len(found.cells)
    reference = found.reference is not None
    with canvas(1.9 + 1.45 * (columns + 1.25 * reference), 1.6 + 0.95 * rows) as (figure, axes):
        shade = _shades(found)
        level = level_with_best(found) if found.best else []
        for row, cells in enumerate(found.cells):
            for column, cell in enumerate(cells):
                mark = BEST if cell is found.best else LEVEL if any(cell is each for each in level) else ""
                _cell(axes, found, cell, column, row, shade, mark)
        ticks: list[float] = list(range(columns))
        labels = [each.label for each in found.x.levels]
        if found.reference is not None:
            _cell(axes, found, found.reference, columns + 0.25, 0, shade, "")
            ticks, labels = [*ticks, columns + 0.25], [*labels, "reference"]
        axes.set(xlim=(-0.5, columns - 0.5 + 1.25 * reference), ylim=(rows - 0.5, -0.5))
        axes.set_xticks(ticks, labels)
        axes.set_xlabel(axis_label(found.x.key))
        axes.set_yticks(*_rows(found.y)) if found.y else axes.set_yticks([])
        axes.set_ylabel(axis_label(found.y.key) if found.y else "")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(measure(found.objective).label, pad=24)
        axes.text(0, 1, _key(found), transform=axes.transAxes, fontsize=8, color=SOFT, va="bottom")
    return figure


def _shades(found: Map) -> Any:
    """Colour of a value: the scale spans the intervals, not the values, so that what is noise has nearly one colour."""
    shown = [cell.found for cell in [*found.filled, *([found.reference] if found.reference else [])] if cell.found]
    low, high = min((f.low for f in shown), default=0.0), max((f.high for f in shown), default=1.0)
    scale = Normalize(low, high if high > low else low + 1)
    colours = colormaps["cividis_r" if measure(found.objective).lower_is_better else "cividis"]
    return lambda value: colours(float(scale(value)))


def _cell(axes: Axes, found: Map, cell: Cell, column: float, row: int, shade: Any, mark: str) -> None:
    corner = column - 0.48, row - 0.47
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    if cell.found is None:
        axes.add_patch(Rectangle(corner, 0.96, 0.94, facecolor=EMPTY, edgecolor=SOFT, linewidth=0, hatch="///"))
        box = {"facecolor": EMPTY, "edgecolor": "none", "pad": 2}
        axes.text(column, row, cell.why_empty, color=SOFT, fontsize=8.5, bbox=box, **middle)
        return
    colour = shade(cell.found.value)
    ink = "white" if _luminance(colour) < 0.179 else "black"  # the better contrast, above 4.5 either way
    ours = mark == BEST
    edge: dict[str, Any] = {"edgecolor": COLOURS[1] if ours else "white", "linewidth": 2.5 if ours else 0}
    axes.add_patch(Rectangle(corner, 0.96, 0.94, facecolor=colour, zorder=2 if ours else 1, **edge))
    how = measure(found.objective)
    value = f"{mark} {how.text(cell.found.value)}".strip()
    lines = [line for line in (_brackets(cell, found.objective), _sizes(cell)) if line]
    up = 0.22 if lines else 0.0
    axes.text(column, row - up, value, color=ink, fontsize=12, fontweight="bold", zorder=3, **middle)
    axes.text(column, row + 0.16, "\n".join(lines), color=ink, fontsize=8, zorder=3, **middle)


def _key(found: Map) -> str:
    """How to read the cells, for whoever sees the picture alone."""
    best = f"{BEST} best"
    if not any(cell.found and cell.found.count for cell in found.filled):
        return best
    return f"[95 % interval over n dev images]   {best}   {LEVEL} interval overlaps the best's: no difference shown"


def _brackets(cell: Cell, objective: str) -> str:
    assert cell.found is not None
    return estimates.text(cell.found, objective).partition(" ")[2]


def _sizes(cell: Cell) -> str:
    assert cell.found is not None
    images = f"n = {cell.found.count:,}" if cell.found.count else ""
    seeds, done = len({trial.seed for trial in cell.trials}), sum(trial.status == "done" for trial in cell.tried)
    runs = f"{seeds} seeds" if seeds > 1 else f"best of {done}" if done > len(cell.trials) else ""
    return ", ".join(filter(None, (images, runs)))


def _rows(y: Side) -> tuple[list[int], list[str]]:
    return list(range(len(y.levels))), [level.label for level in y.levels]


def _luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of WCAG 2.1, of red, green and blue in [0, 1]."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
