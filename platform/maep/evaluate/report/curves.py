"""The curves of an evaluation: accuracy over eps, attack steps and EOT samples, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc

from maep.evaluate.config import eps_label
from maep.evaluate.report import drawing
from maep.evaluate.report.drawing import COLOURS, MARKERS, canvas, series_label
from maep.evaluate.report.page import Picture
from maep.evaluate.report.table import Table, percent
from maep.evaluate.results import summary
from maep.evaluate.results.summary import CURVES, WORST, Figure, Result, Share

if TYPE_CHECKING:
    import matplotlib.figure

_LABEL_ROOM = 1 / 14
"""Least distance of two tick labels, as a share of the x axis."""


@dataclass(frozen=True)
class CurvePoint(Share):
    """An accuracy at `x`; `label` is x as written, such as 0.5."""

    x: float
    label: str


@dataclass(frozen=True)
class Curve:
    """The points of one defence in ascending x; `place` sets colour and marker, the same in all charts of a page."""

    name: str
    place: int
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Chart:
    """Accuracy over `x_label`; a `log` scale needs every x above 0. `note` is shown below the chart."""

    title: str
    x_label: str
    curves: tuple[Curve, ...]
    scale: Literal["linear", "log"] = "linear"
    note: str = ""


def charts(result: Result, rows: pa.Table) -> list[Chart]:
    """Worst cases over eps, then accuracies over steps and EOT: one chart per classifier, threat model and norm."""
    place = {name: number for number, name in enumerate(result.values["purifiers"])}
    found = []
    for classifier in result.values["classifiers"]:
        mine = [figure for figure in result.figures if figure.classifier == classifier]
        worst = [f for f in mine if f.attack == WORST and f.threat not in CURVES]
        for threat, norm in dict.fromkeys((f.threat, f.norm) for f in worst):
            chosen = [f for f in worst if (f.threat, f.norm) == (threat, norm)]
            if len({f.eps for f in chosen}) > 1:
                note = _attacks([f for f in mine if (f.threat, f.norm) == (threat, norm)])
                found.append(replace(_over_eps(classifier, chosen, rows, place), note=note))
        for threat, x_label in zip(CURVES, ("attack steps", "samples averaged per gradient (EOT)"), strict=True):
            chosen = [f for f in mine if f.threat == threat and f.attack != WORST]
            for eps, norm in dict.fromkeys((f.eps, f.norm) for f in chosen):
                found.append(_over_effort(x_label, [f for f in chosen if (f.eps, f.norm) == (eps, norm)], place))
    return found


def _over_eps(classifier: str, figures: Sequence[Figure], rows: pa.Table, place: Mapping[str, int]) -> Chart:
    """Starts at the clean accuracy of the same images, at eps 0."""
    threat, norm = figures[0].threat, figures[0].norm
    unit = "eps (of 255)" if norm == "Linf" else f"eps ({norm})"
    curves = []
    for name in dict.fromkeys(figure.purifier for figure in figures):
        own = sorted((figure for figure in figures if figure.purifier == name), key=lambda figure: figure.eps)
        right, total = _clean_on(rows, own[0])
        zero = CurvePoint(right / total, *summary.interval(right, total), 0.0, "0")
        scale = 255 if norm == "Linf" else 1
        points = [CurvePoint(f.accuracy, f.low, f.high, f.eps * scale, f"{f.eps * scale:.4g}") for f in own]
        curves.append(Curve(name, place[name], (zero, *points)))
    return Chart(f"{classifier}, {threat}, {norm}: worst case over eps", unit, tuple(curves))


def _attacks(figures: Sequence[Figure]) -> str:
    """Which attacks made which points: there are fewer at budgets that only draw the curve."""
    by_eps: dict[float, list[str]] = {}
    for figure in sorted(figures, key=lambda figure: figure.eps):
        made = by_eps.setdefault(figure.eps, [])
        if figure.attack not in (WORST, *made):
            made.append(figure.attack)
    same: dict[str, list[str]] = {}
    for eps, made in by_eps.items():
        same.setdefault(", ".join(made), []).append(f"{eps * 255:.4g}" if figures[0].norm == "Linf" else f"{eps:g}")
    return "Attacks " + "; ".join(f"at {', '.join(budgets)}: {made}" for made, budgets in same.items()) + "."


def _over_effort(x_label: str, figures: Sequence[Figure], place: Mapping[str, int]) -> Chart:
    over_eot = figures[0].threat == "adaptive-eot"
    curves = []
    for name in dict.fromkeys(figure.purifier for figure in figures):
        own = {figure.eot if over_eot else figure.steps: figure for figure in figures if figure.purifier == name}
        points = tuple(CurvePoint(own[x].accuracy, own[x].low, own[x].high, x, str(x)) for x in sorted(own))
        curves.append(Curve(name, place[name], points))
    first = figures[0]
    attack = first.attack if over_eot else first.attack.partition("-")[0]
    where = f"{first.classifier}, adaptive {attack} at {eps_label(first.eps, first.norm)}"
    return Chart(f"{where} over {'EOT' if over_eot else 'steps'}", x_label, tuple(curves), "log")


def _clean_on(rows: pa.Table, figure: Figure) -> tuple[int, int]:
    """Correct answers and number of images, of the images of `figure` without attack."""

    def of(threat: str) -> pa.Table:
        wanted = {"purifier": figure.purifier, "classifier": figure.classifier, "threat": threat}
        chosen = [pc.equal(rows[name], value) for name, value in wanted.items()]
        return rows.filter(pc.and_(pc.and_(chosen[0], chosen[1]), chosen[2]))

    clean = of("clean")
    clean = clean.filter(pc.is_in(clean["index"], pc.unique(of(figure.threat)["index"])))
    return int(pc.sum(clean["correct"]).as_py()), clean.num_rows


def picture(chart: Chart, name: str) -> Picture:
    """The chart with its values, as a page shows it. Needs at least one point."""
    body = [(curve.name, point.label, percent(point)) for curve in chart.curves for point in curve.points]
    ends = [(curve.name, curve.points[-1]) for curve in chart.curves]
    said = "Rightmost points: " + ", ".join(f"{name} {percent(end)} % at {end.label}" for name, end in ends) + "."
    table = Table(chart.title, ("defence", chart.x_label, "accuracy, %"), tuple(body))
    return Picture(name, chart.title, said, table, draw(chart), chart.note)


def draw(chart: Chart) -> matplotlib.figure.Figure:
    """Lines through the measured points, with their intervals as bars and bands. Needs at least one point."""
    from matplotlib.ticker import NullLocator

    with canvas(6.4, 4.0) as (figure, axes):
        for curve in chart.curves:
            colour, marker = COLOURS[curve.place % len(COLOURS)], MARKERS[curve.place % len(MARKERS)]
            x = [point.x for point in curve.points]
            y, low, high = ([100 * getattr(p, key) for p in curve.points] for key in ("accuracy", "low", "high"))
            bars = drawing.distances(y, low, high)
            label = series_label(curve.name)
            axes.errorbar(x, y, bars, color=colour, marker=marker, markersize=5, elinewidth=1, label=label)
            if len(x) > 1:
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale(chart.scale)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(*_ticks(chart))
        axes.set(ylim=(-2, 102), xlabel=chart.x_label, ylabel="accuracy, %")
        axes.grid(axis="y", alpha=0.25)
        drawing.legend(axes, 3)
    return figure


def _ticks(chart: Chart) -> tuple[list[float], list[str]]:
    """A tick at each measured x, labelled where the label does not touch the one before."""
    place = math.log if chart.scale == "log" else float
    labels = {point.x: point.label for curve in chart.curves for point in curve.points}
    room = _LABEL_ROOM * (place(max(labels)) - place(min(labels)))
    shown, last = [], -math.inf
    for x in sorted(labels):
        fits = place(x) - last >= room
        shown.append(labels[x] if fits else "")
        last = place(x) if fits else last
    return sorted(labels), shown
