"""The charts of how a search went: the best so far, each trial on its way, and what stopping early saved."""

from __future__ import annotations

from collections.abc import Sequence

from maep.evaluate.report.page import Picture
from maep.evaluate.report.table import Table
from maep.tune.metrics import estimates
from maep.tune.metrics.estimates import estimate, measure
from maep.tune.report import drawing, history
from maep.tune.report.drawing import KINDS
from maep.tune.report.section import Section
from maep.tune.results import Result


def course_section(result: Result) -> Section:
    """The best so far, and each trial on its way, by every objective that was looked for."""
    section = Section("history", "The course of the search")
    points = result.curves()
    for objective in result.config.objectives:
        how, steps = measure(objective), history.history(result.trials, objective)
        if not steps:
            section.remarks.append(f"No trial was measured by {how.words}.")
            continue
        body = [
            (
                str(step.trial.number), step.trial.status, f"{step.samples_seen:,}",
                estimates.text(estimate(step.trial, objective), objective),
                "–" if step.best is None else how.text(step.best),
            )
            for step in steps
        ]  # fmt: skip
        head = ("trial", "status", "images seen by all", how.label, "best so far")
        title = f"best {how.words} so far"
        said = _course_words(steps, objective)
        table = Table(title, head, tuple(body))
        figure = drawing.course(steps, objective)
        section.pictures.append(Picture(f"history-{objective}", title, said, table, figure, _COURSE))
        if any(sum(objective in point.objectives for point in mine) > 1 for mine in points.values()):
            section.pictures.append(_curves(result, objective))
    return section


_COURSE = (
    "Bars are 95 % intervals. Trials stand in the order in which they ended; a pretraining that several share counts"
    " for each of them."
)


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


def budget_section(result: Result) -> Section:
    """What each trial has spent, and what stopping early has left."""
    section = Section("budget", "Budget, and what stopping early saved")
    whole, allowed = history.saved(result.trials, result.config.budget), result.config.budget
    body = [
        (
            str(trial.number), trial.status, _amount(history.spent(trial, allowed.kind), allowed.kind),
            _amount(history.unspent(trial, allowed), allowed.kind), f"{trial.budget.samples_seen:,}",
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
    left, full = _amount(whole.full - whole.spent, whole.kind), _amount(whole.full, whole.kind)
    return (
        f"{said} {whole.num_stopped} of {whole.num_trials} trials were stopped early, which left {left} of {full}"
        f" {unit} unspent: {whole.share:.0%}."
    )


def _amount(value: float, kind: str) -> str:
    """So much of a budget: whole images, tenths of a second, operations in three digits."""
    return f"{value:.3g}" if kind == "flops" else f"{value:,.{1 if kind == 'core_seconds' else 0}f}"
