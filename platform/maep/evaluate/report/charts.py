"""Charts of accuracy as inline SVG: lines through what was measured, in bands of their 95 % intervals.

Pure text: no script, no style sheet, no resource. A page may set the eight series' colours by their classes `series-0`
to `series-7`; axes and words take the colour of the text around them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8a5bb5", "#a67c00", "#c0508a", "#2f8fc4", "#5f6b76")
"""Of the series, in turn; after Okabe and Ito (2008), told apart by colour-blind readers, dark enough for lines."""
MARKERS = ("circle", "square", "triangle", "diamond")
_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 14, 12, 44
_ROOM = 30
"""Least distance of two labels on the x axis."""


@dataclass(frozen=True)
class Point:
    """An accuracy and its interval, shares in [0, 1], at `x`; `label` says x as it is written, such as 8/255."""

    x: float
    label: str
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """The points of one defence in ascending x; `place` decides colour and marker, alike in all charts of a page."""

    name: str
    place: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """Accuracy in % against `x_label`; x is `linear`, or `log` for steps and passes (then every x is above 0).

    `note` is for the words below the picture.
    """

    title: str
    x_label: str
    series: tuple[Series, ...]
    scale: Literal["linear", "log"] = "linear"
    note: str = ""


def svg(chart: Chart) -> str:
    """The chart as one `<svg>` element, every word in it escaped. Needs at least one point."""
    points = [point for series in chart.series for point in series.points]
    assert points, "a chart of nothing"
    span = (min(point.x for point in points), max(point.x for point in points))
    parts = [*_grid(), *_x_axis(chart, points, span)]
    parts += [_band(series, chart.scale, span) for series in chart.series if len(series.points) > 1]
    parts += [_line(series, chart.scale, span) for series in chart.series]
    title, said = escape(chart.title), escape(_in_words(chart))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}. {said}" font-size="12"'
        f' fill="currentColor">{"".join(parts)}</svg>'
    )


def swatch(place: int) -> str:
    """A small `<svg>` with the line and marker of a series, for a legend; words stand beside it."""
    return (
        f'<svg viewBox="0 0 28 12" width="28" height="12" aria-hidden="true" {_colour(place)}>'
        f'<path d="M1 6H27" stroke="currentColor" stroke-width="2"/>{_marker(place, 14, 6)}</svg>'
    )


def _across(x: float, scale: str, span: tuple[float, float]) -> float:
    low, high, at = (math.log(v) for v in (*span, x)) if scale == "log" else (*span, x)
    share = (at - low) / (high - low) if high > low else 0.5
    return _LEFT + 8 + share * (_WIDTH - _LEFT - _RIGHT - 16)


def _up(accuracy: float) -> float:
    return _TOP + (1 - accuracy) * (_HEIGHT - _TOP - _BOTTOM)


def _grid() -> Iterator[str]:
    for percent in range(0, 101, 20):
        y = _up(percent / 100)
        yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="currentColor" stroke-opacity=".16"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{percent}</text>'
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    yield f'<text transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">accuracy, %</text>'


def _x_axis(chart: Chart, points: Sequence[Point], span: tuple[float, float]) -> Iterator[str]:
    """A tick for each x that was measured, and its label where there is room."""
    labels = {point.x: point.label for point in points}
    bottom, last = _HEIGHT - _BOTTOM, -math.inf
    for x in sorted(labels):
        across = _across(x, chart.scale, span)
        yield f'<path d="M{across:.1f} {bottom}v5" stroke="currentColor"/>'
        if across - last >= _ROOM:
            yield f'<text x="{across:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(labels[x])}</text>'
            last = across
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(chart.x_label)}</text>'


def _band(series: Series, scale: str, span: tuple[float, float]) -> str:
    above = [(_across(p.x, scale, span), _up(p.high)) for p in series.points]
    below = [(_across(p.x, scale, span), _up(p.low)) for p in reversed(series.points)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*above, *below])
    return f'<polygon points="{corners}" fill="currentColor" fill-opacity=".15" {_colour(series.place)}/>'


def _line(series: Series, scale: str, span: tuple[float, float]) -> str:
    """Line and markers; a marker says its values where a pointer rests on it, and a lone one shows its interval."""
    spots = [(_across(p.x, scale, span), _up(p.accuracy), p) for p in series.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in spots)
    marks = []
    for x, y, point in spots:
        hint = f"<title>{escape(f'{series.name}, {point.label}: {_percent(point)}')}</title>"
        bar = f'<path d="M{x:.1f} {_up(point.low):.1f}V{_up(point.high):.1f}" stroke="currentColor"/>'
        marks.append(f"<g>{hint}{bar}{_marker(series.place, x, y)}</g>")
    return (
        f'<g {_colour(series.place)}><path d="{path}" fill="none" stroke="currentColor" stroke-width="2"/>'
        f"{''.join(marks)}</g>"
    )


def _marker(place: int, x: float, y: float) -> str:
    match MARKERS[place % len(MARKERS)]:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="currentColor"/>'
        case "square":
            return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="currentColor"/>'
        case "triangle":
            return f'<path d="M{x:.1f} {y - 4.5:.1f}l4.5 8h-9z" fill="currentColor"/>'
        case _:
            return f'<path d="M{x:.1f} {y - 5:.1f}l5 5-5 5-5-5z" fill="currentColor"/>'


def _colour(place: int) -> str:
    number = place % len(COLOURS)
    return f'class="series-{number}" color="{COLOURS[number]}"'


def _in_words(chart: Chart) -> str:
    """All that the picture shows, for those who do not see it."""
    lines = (f"{s.name}: " + ", ".join(f"{_percent(p)} at {p.label}" for p in s.points) for s in chart.series)
    return "Accuracy in %. " + "; ".join(lines)


def _percent(point: Point) -> str:
    return f"{100 * point.accuracy:.1f} [{100 * point.low:.1f}, {100 * point.high:.1f}]"
