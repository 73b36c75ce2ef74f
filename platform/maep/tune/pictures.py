"""Which charts a search has, and what each says in words and in figures; what cannot be drawn is said instead."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from maep.evaluate.table import Table
from maep.tune import drawing, history, maps, measures
from maep.tune.drawing import BEST, KINDS, LEVEL
from maep.tune.front import front
from maep.tune.importance import importance
from maep.tune.maps import Cell, Map
from maep.tune.measures import MEASURES, estimate, finished, measure
from maep.tune.record import TrialRecord
from maep.tune.results import Result

COSTS = tuple(name for name, how in MEASURES.items() if how.lower_is_better)
_CELLS = (
    f"Only trials that trained to the end. In each cell the value, its 95 % interval (Wilson) and n, the dev images it"
    f" is over; {BEST} is the best, {LEVEL} overlaps its interval: no difference from it is shown. The scale of colours"
    " spans the intervals, so what may be noise looks alike."
)
_CHOSEN = (
    " Trials of a cell differ in other settings too: it shows the best of them, and more trials are more chances to"
    " look good."
)
_REPEATS = (
    " Repeats are averaged; all of them saw the same images, so the interval is that of one set, widened to hold each."
)


@dataclass(frozen=True)
class Picture:
    """A chart: the stem of its file, its title, what it says, all its values, and how to read it."""

    name: str
    title: str
    said: str
    table: Table
    figure: Figure
    note: str = ""


@dataclass(frozen=True)
class Section:
    """The charts of one question; `remarks` say what could not be drawn, and why. `key` is its place on the page."""

    key: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def sections(result: Result) -> list[Section]:
    """The map, the front, importance, the course of the search, and what early stopping saved."""
    return [_map(result), _front(result), _importance(result), _course(result), _budget(result)]


def setting_text(settings: dict[str, Any]) -> str:
    """Settings as they are written in a sentence."""
    return ", ".join(f"{key} {value_text(value)}" for key, value in settings.items()) or "nothing varied"


def value_text(value: Any) -> str:
    """One setting's value: a number in four digits, a section as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)


def _map(result: Result) -> Section:
    section = Section("map", _map_title(result))
    on = maps.pair(result.trials, result.space)
    if not on:
        section.remarks.append("No setting of the space has two values among the trials, so there is no map.")
        return section
    for objective in result.objectives:
        found = maps.chart(result.trials, result.space, objective, on)
        if not found.filled:
            section.remarks.append(maps.verdict(found))
            continue
        several = any(len(cell.trials) > 1 for cell in found.filled)
        note = _CELLS + (_CHOSEN if found.chosen else _REPEATS if several else "") + _reference(found)
        title = f"{measure(objective).label} by {' and '.join(maps.short(key) for key in on)}"
        table = _map_table(title, found)
        section.pictures.append(
            Picture(f"map-{objective}", title, maps.verdict(found), table, drawing.heat_map(found), note)
        )
    return section


def _map_title(result: Result) -> str:
    on = [maps.short(key).replace("_", " ") for key in maps.pair(result.trials, result.space)]
    return f"Map: {' × '.join(on)}" if on else "Map"


def _reference(found: Map) -> str:
    if found.reference is None:
        return ""
    fixed = setting_text(found.reference.tried[0].settings)
    return f" The reference stands beside the space: {fixed}. It is not compared in the words above."


def _map_table(title: str, found: Map) -> Table:
    """One row a cell, so that intervals, images and trials have columns of their own."""
    sides = [side for side in (found.y, found.x) if side is not None]
    body = []
    for row, cells in enumerate(found.cells):
        for column, cell in enumerate(cells):
            where = [found.y.levels[row].label] if found.y else []
            body.append((*where, found.x.levels[column].label, *_cell_texts(cell, found.objective)))
    if found.reference is not None:
        body.append(("reference", *["–"] * (len(sides) - 1), *_cell_texts(found.reference, found.objective)))
    head = (*(maps.short(side.key) for side in sides), measure(found.objective).label, "images", "trials", "which")
    return Table(title, head, tuple(body))


def _cell_texts(cell: Cell, objective: str) -> tuple[str, ...]:
    which = ", ".join(str(trial.number) for trial in cell.trials) or "–"
    if cell.found is None:
        return cell.why_empty, "–", str(len(cell.tried)), which
    images = f"{cell.found.count:,}" if cell.found.count else "–"
    return measures.text(cell.found, objective), images, str(len(cell.tried)), which


def _front(result: Result) -> Section:
    first, *others = result.config.objectives
    section = Section("front", "Best of several: the Pareto front")
    partners: list[str] = [name for name in others or COSTS if name != first and finished(result.trials, name)]
    if not finished(result.trials, first) or not partners:
        section.remarks.append("No two objectives were measured of a trial that trained to the end: there is no front.")
        return section
    for other in partners:
        kept = front(result.trials, [first, other])
        able = [trial for trial in finished(result.trials, first) if other in trial.objectives]
        title = f"{measure(first).words} against {measure(other).words}"
        figure = drawing.pareto(able, kept, other, first)
        table = _under(kept, first, other)
        section.pictures.append(
            Picture(f"front-{first}-{other}", title, _front_words(able, kept, first, other), table, figure, _FRONT)
        )
    return section


_FRONT = (
    "Numbers are those of trials; lines through a point are its 95 % interval. The front is drawn through the values as"
    " measured: where intervals overlap, another run may put another trial on it."
)


def _front_words(able: Sequence[TrialRecord], kept: Sequence[TrialRecord], first: str, other: str) -> str:
    words = f"{measure(first).words} and {measure(other).words}"
    if len(kept) == 1:
        return f"Trial {kept[0].number} is the best in both {words}: nothing has to be traded."
    said = f"{len(kept)} of {len(able)} finished trials are on the front of {words}: no other beats them in both."
    ends = estimate(kept[0], first), estimate(kept[-1], first)
    if ends[0].count and ends[0].overlaps(ends[1]):
        said += f" No difference in {measure(first).words} is shown between its two ends: their intervals overlap."
    return said


def _under(kept: Sequence[TrialRecord], first: str, other: str) -> Table:
    """The front as an answer: whoever allows so much of `other` gets this trial."""
    how = measure(other)
    word = "at most" if how.lower_is_better else "at least"
    body = [
        (
            f"{word} {how.text(trial.objectives[other])}",
            str(trial.number),
            measures.text(estimate(trial, first), first),
            setting_text(trial.settings),
        )
        for trial in sorted(kept, key=lambda t: t.objectives[other], reverse=not how.lower_is_better)
    ]
    head = (how.label, "best trial", measure(first).label, "settings")
    return Table(f"Best {measure(first).words} under a limit on {how.words}", head, tuple(body))


def _importance(result: Result) -> Section:
    section = Section("importance", "Which settings mattered")
    every = [importance(result.trials, result.space, name) for name in _asked(result)]
    section.remarks.extend(f"{measure(e.objective).words.capitalize()}: {e.why}." for e in every if not e.shares)
    shown = [each for each in every if each.shares]
    if shown:
        body = [
            (key, measure(each.objective).words, f"{100 * share:.0f}")
            for each in shown
            for key, share in each.shares.items()
        ]
        table = Table("Importance by fANOVA", ("setting", "objective", "share of the variance, %"), tuple(body))
        said = " ".join(
            f"{measure(each.objective).words.capitalize()} varied most with {next(iter(each.shares))}:"
            f" {100 * next(iter(each.shares.values())):.0f} % of what the forest explains."
            for each in shown
        )
        note = (
            "fANOVA (Hutter et al. 2014): how much of the variance of a random forest over the space goes with each"
            " setting alone; what two do only together is in neither. Out-of-bag R² says how well that forest predicts"
            " trials it was not fitted to: 1 is perfect, 0 is no better than the mean. Finished trials only."
        )
        section.pictures.append(
            Picture("importance", "Importance by fANOVA", said, table, drawing.importances(shown), note)
        )
    return section


def _course(result: Result) -> Section:
    section = Section("history", "The course of the search")
    points = result.curves()
    for objective in _asked(result):
        how, steps = measure(objective), history.history(result.trials, objective)
        if not steps:
            section.remarks.append(f"No trial was measured by {how.words}.")
            continue
        body = [
            (
                str(step.trial.number), step.trial.status, f"{step.samples_seen:,}",
                measures.text(estimate(step.trial, objective), objective),
                "–" if step.best is None else how.text(step.best),
            )
            for step in steps
        ]  # fmt: skip
        head = ("trial", "status", "images seen by all", how.label, "best so far")
        title = f"best {how.words} so far"
        said, note = (
            _course_words(steps, objective),
            "Bars are 95 % intervals. Trials in the order in which they ended.",
        )
        table = Table(title, head, tuple(body))
        figure = drawing.course(steps, objective)
        section.pictures.append(Picture(f"history-{objective}", title, said, table, figure, note))
        if any(sum(objective in point.objectives for point in mine) > 1 for mine in points.values()):
            section.pictures.append(_curves(result, objective))
    return section


def _course_words(steps: Sequence[history.Step], objective: str) -> str:
    how, last = measure(objective), steps[-1]
    if last.best is None:
        return f"No trial trained to the end: there is no best {how.words} yet."
    found = next(step for step in steps if step.best == last.best)
    return (
        f"The best {how.words}, {how.text(last.best)} {how.unit}, was reached by trial {found.trial.number} after"
        f" {found.samples_seen:,} of {last.samples_seen:,} images seen by all trials."
    )


def _curves(result: Result, objective: str) -> Picture:
    points, how = result.curves(), measure(objective)
    body = [
        (str(trial.number), trial.status, f"{point.samples_seen:,}", how.text(point.objectives[objective]))
        for trial in result.trials
        for point in points[trial.trial_id]
        if objective in point.objectives
    ]
    title = f"{how.words} of each trial on its way"
    table = Table(title, ("trial", "status", "images seen", how.label), tuple(body))
    said = "Each line is a trial, each mark a rung at which it was measured."
    return Picture(f"curves-{objective}", title, said, table, drawing.curves(points, result.trials, objective))


def _budget(result: Result) -> Section:
    section = Section("budget", "Budget, and what stopping early saved")
    whole, allowed = history.saved(result.trials, result.config.budget), result.config.budget
    body = [
        (
            str(trial.number), trial.status, f"{history.spent(trial, allowed.kind):,.4g}",
            f"{history.unspent(trial, allowed):,.4g}", f"{trial.budget.samples_seen:,}",
            f"{trial.budget.flops:.3g}", f"{trial.budget.core_seconds:,.1f}",
        )
        for trial in result.trials
    ]  # fmt: skip
    unit = KINDS[allowed.kind]
    head = ("trial", "status", f"spent, {unit}", "left unspent", "images seen", "FLOPs", "core-seconds")
    title = f"{unit} by trial"
    figure = drawing.budget(result.trials, allowed)
    section.pictures.append(
        Picture("budget", title, _saved_words(result, whole), Table(title, head, tuple(body)), figure, _BUDGET)
    )
    return section


_BUDGET = "A pretraining that several trials share counts in full for each of them, so that their budgets are equal."


def _saved_words(result: Result, whole: history.Saved) -> str:
    unit, allowed = KINDS[whole.kind], result.config.budget
    said = f"Each trial may spend {allowed.amount:,.6g} {unit}."
    if result.config.halving is None:
        return f"{said} Every trial got its whole budget: no early stopping was asked for, so it saved nothing."
    if not whole.num_stopped:
        return f"{said} No trial was stopped early: nothing was saved."
    return (
        f"{said} {whole.num_stopped} of {whole.num_trials} trials were stopped early, which left"
        f" {whole.full - whole.spent:,.4g} of {whole.full:,.4g} {unit} unspent: {whole.share:.0%}."
    )


def _asked(result: Result) -> Iterable[str]:
    return list(result.config.objectives)
