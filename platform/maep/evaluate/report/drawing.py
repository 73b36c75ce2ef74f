"""Charts by Matplotlib: one style for every report, PNG for files, SVG for pages.

Uses neither pyplot nor any global style. The same figure gives the same bytes. Series differ by marker as well as by
colour, and every accuracy carries its interval.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Matplotlib takes half a second to import and writes to the home folder: only where a chart is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8a5bb5", "#a67c00", "#c0508a", "#2f8fc4", "#5f6b76")
"""Series colours in order: Okabe and Ito (2008), distinct to colour-blind readers and dark enough for lines."""
MARKERS = ("o", "s", "^", "D")
INK, SOFT, EMPTY = "#1b1f24", "#59636e", "#eceff2"
_DARK = ("#56b4e9", "#ff8a4c", "#2fc79b", "#b794e0", "#e0b03a", "#ee8fc0", "#8fd0f5", "#a9b4bf")
_ON_DARK = {INK: "#e4e8ec", SOFT: "#9aa5b1", EMPTY: "#262d34", **dict(zip(COLOURS, _DARK, strict=True))}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # ships with Matplotlib, so charts look the same on every machine
    "text.parse_math": False,  # a name may hold a dollar sign
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": SOFT,
    "svg.fonttype": "path",
    "svg.hashsalt": "maep",
    "figure.dpi": 100,
}
_LONGEST_NAME = 32


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure, size in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot()


@contextmanager
def panels(rows: int, columns: int, side: float) -> Iterator[tuple[Figure, Any]]:
    """An empty figure and its axes [rows, columns], squares of `side` inches for images."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "xtick.bottom": False, "ytick.left": False, "axes.titlelocation": "center"}):
        figure = Figure(figsize=(columns * (side + 0.1), rows * (side + 0.3)))
        yield figure, figure.subplots(rows, columns, squeeze=False)


def series_label(name: str) -> str:
    """`name` as a legend shows it: cut where it is long; Matplotlib would hide one that starts with an underscore."""
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    return f" {short}" if short.startswith("_") else short


def legend(axes: Axes, columns: int) -> None:
    """Puts the legend above the chart."""
    axes.legend(ncols=columns, frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def distances(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """Interval bounds as the distances below and above that `Axes.errorbar` takes."""
    return [
        [max(value - bound, 0.0) for value, bound in zip(values, low, strict=True)],
        [max(bound - value, 0.0) for value, bound in zip(values, high, strict=True)],
    ]


def png(figure: Figure) -> bytes:
    """The figure as a PNG on white."""
    return _encoded(figure, "png", {"Software": None}, facecolor="white")


def svg(figure: Figure) -> bytes:
    """The figure as an SVG without a background; its colours follow the reader's light or dark scheme."""
    text = _encoded(figure, "svg", {"Date": None}, facecolor="none").decode()
    names = {colour: f"--c{place}" for place, colour in enumerate(_ON_DARK)}
    text = re.sub("|".join(names), lambda found: f"var({names[found[0]]})", text)
    light = ";".join(f"{name}:{colour}" for colour, name in names.items())
    dark = ";".join(f"{name}:{_ON_DARK[colour]}" for colour, name in names.items())
    rules = f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return text.replace('<style type="text/css">', f'<style type="text/css">{rules}', 1).encode()


def _encoded(figure: Figure, kind: str, metadata: dict[str, Any], facecolor: str) -> bytes:
    from matplotlib import rc_context

    data = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(
            data, format=kind, dpi=160, metadata=metadata, facecolor=facecolor, bbox_inches="tight", pad_inches=0.08
        )
    return data.getvalue()
