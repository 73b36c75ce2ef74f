"""The sections of a search's page: charts, each with a sentence and all its values; what cannot be drawn is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from maep.evaluate.report.page import Picture
from maep.evaluate.report.table import Table
from maep.tune import pareto
from maep.tune.metrics import estimates
from maep.tune.metrics.estimates import estimate, finished, metric
from maep.tune.record import TrialRecord
from maep.tune.report import charts, maps
from maep.tune.report.charts import UNITS
from maep.tune.report.heat_map import BEST, LEVEL, heat_map
from maep.tune.report.history import HistoryEntry, history, saved, spent, unspent
from maep.tune.report.importance import importance
from maep.tune.report.maps import Cell, Map
from maep.tune.results import SearchResult
from maep.tune.search.space import setting_text

COSTS = ("latency_ms", "num_parameters")
_CELLS = (
    "Only trials that trained to the end fill a cell. It shows the value, its 95 % interval (Wilson) and n, the number"
    f" of dev images; {BEST} is the best cell, {LEVEL} a cell whose interval overlaps: no difference is shown. Colours"
    " span the intervals, so differences within noise look alike. The interval covers the choice of images, not the"
    " training seed: only cells of several seeds show that. Latency and size are measured once, without an interval."
)
_CHOSEN = (
    "Trials of a cell differ in other settings too. The cell shows the best of them, so a cell with more trials looks"
    " better by chance."
)
_REPEATS = (
    "Repeats with other seeds are averaged; the interval is that of one set of images, widened to hold each repeat."
)
_FRONT = (
    "Numbers are trial numbers, bars 95 % intervals. The front joins measured values: where intervals overlap, another"
    " run may put another trial on it."
)
_IMPORTANCE = (
    "fANOVA (Hutter et al. 2014): the share of a random forest's variance over the space that each setting explains"
    " alone; interactions belong to no setting. Out-of-bag R² says how well the forest predicts trials left out of its"
    " fit: 1 is perfect, 0 no better than the mean. Finished trials only."
)
_HISTORY = "Bars are 95 % intervals. Trials are in the order of their ends; a shared pretraining counts for each trial."
_BUDGET = "A pretraining shared by several trials counts in full for each of them, so their budgets are equal."


@dataclass(frozen=True)
class Section:
    """The charts of one question; `remarks` say what could not be drawn and why. `key` is the anchor on the page."""

    key: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def all_sections(result: SearchResult) -> list[Section]:
    """The map, the Pareto front, importances, the history and the budget."""
    return [make(result) for make in (map_section, front_section, importance_section, history_section, budget_section)]


def map_section(result: SearchResult) -> Section:
    """A map for each measured objective."""
    on = maps.map_keys(result.trials, result.space)
    names = [maps.short(key) for key in on]
    title = f"Map: {' × '.join(name.replace('_', ' ') for name in names)}" if on else "Map"
    section = Section("map", title)
    if not on:
        section.remarks.append("No setting of the space has two values among the trials, so there is no map.")
        return section
    found = [maps.make_map(result.trials, result.space, objective, on) for objective in result.objectives]
    shown = [each for each in found if each.filled]
    section.remarks.extend(maps.verdict(each) for each in found if not each.filled)
    section.remarks.extend(_how_to_read(shown[0]) if shown else [])
    for each in shown:
        title = f"{_capital(metric(each.objective).label)} by {' and '.join(names)}"
        section.pictures.append(
            Picture(f"map-{each.objective}", title, maps.verdict(each), _map_table(title, each), heat_map(each))
        )
    return section


def _how_to_read(found: Map) -> list[str]:
    """Remarks for all maps of a search, which have the same cells."""
    texts = [_CELLS]
    if found.chosen:
        texts.append(_CHOSEN)
    elif any(len(cell.trials) > 1 for cell in found.filled):
        texts.append(_REPEATS)
    if found.reference is not None:
        settings = setting_text((found.reference.trials or found.reference.tried)[0].settings)
        texts.append(f"The reference is outside the space ({settings}) and not part of the verdict.")
    return texts


def _map_table(title: str, found: Map) -> Table:
    """One row per cell."""
    axes = [axis for axis in (found.y, found.x) if axis is not None]
    body = []
    for row, cells in enumerate(found.cells):
        for column, cell in enumerate(cells):
            where = [found.y.bins[row].label] if found.y else []
            body.append((*where, found.x.bins[column].label, *_cell_texts(cell, found.objective)))
    if found.reference is not None:
        body.append(("reference", *["–"] * (len(axes) - 1), *_cell_texts(found.reference, found.objective)))
    head = (*(maps.short(axis.key) for axis in axes), metric(found.objective).label, "images", "trials", "shown")
    return Table(title, head, tuple(body))


def _cell_texts(cell: Cell, objective: str) -> tuple[str, ...]:
    shown = ", ".join(str(trial.number) for trial in cell.trials) or "–"
    images = f"{cell.found.count:,}" if cell.found and cell.found.count else "–"
    value = estimates.text(cell.found, objective) if cell.found else cell.why_empty
    return value, images, str(len(cell.tried)), shown


def front_section(result: SearchResult) -> Section:
    """The first objective against each other one; a single objective, against latency and size."""
    first, *others = result.config.objectives
    section = Section("front", "Pareto front")
    partners: list[str] = [name for name in others or COSTS if name != first and finished(result.trials, name)]
    if not finished(result.trials, first) or not partners:
        section.remarks.append("No finished trial was measured by two objectives, so there is no front.")
        return section
    for other in partners:
        kept = pareto.front(result.trials, [first, other])
        able = [trial for trial in finished(result.trials, first) if other in trial.objectives]
        title = f"{_capital(metric(first).words)} against {metric(other).words}"
        said, table = _front_words(able, kept, first, other), _front_table(kept, first, other)
        figure = charts.front(able, kept, other, first)
        section.pictures.append(Picture(f"front-{first}-{other}", title, said, table, figure, _FRONT))
    return section


def _front_words(able: Sequence[TrialRecord], kept: Sequence[TrialRecord], first: str, other: str) -> str:
    words = f"{metric(first).words} and {metric(other).words}"
    if len(kept) == 1:
        return f"Trial {kept[0].number} is best in both {words}: there is no trade-off."
    said = f"{len(kept)} of {len(able)} finished trials are on the front of {words}: no trial dominates them."
    ends = estimate(kept[0], first), estimate(kept[-1], first)
    if ends[0].count and ends[0].overlaps(ends[1]):
        said += f" No difference in {metric(first).words} is shown between its two ends: their intervals overlap."
    return said


def _front_table(kept: Sequence[TrialRecord], first: str, other: str) -> Table:
    """The best trial under each limit on `other`."""
    how = metric(other)
    word = "at most" if how.lower_is_better else "at least"
    body = [
        (
            f"{word} {how.text(trial.objectives[other])}",
            str(trial.number),
            estimates.text(estimate(trial, first), first),
            setting_text(trial.settings),
        )
        for trial in sorted(kept, key=lambda t: t.objectives[other], reverse=not how.lower_is_better)
    ]
    head = (how.label, "best trial", metric(first).label, "settings")
    return Table(f"Best {metric(first).words} under a limit on {how.words}", head, tuple(body))


def importance_section(result: SearchResult) -> Section:
    """Which settings explain the objectives that were searched for."""
    section = Section("importance", "Which settings mattered")
    every = [importance(result.trials, result.space, name) for name in result.config.objectives]
    section.remarks.extend(f"{_capital(metric(e.objective).words)}: {e.why}." for e in every if not e.shares)
    shown = [(metric(each.objective).words, each) for each in every if each.shares]
    if shown:
        body = [(key, words, f"{100 * share:.0f}") for words, each in shown for key, share in each.shares.items()]
        table = Table("Importance by fANOVA", ("setting", "objective", "share of the variance, %"), tuple(body))
        tops = [(words, *next(iter(each.shares.items()))) for words, each in shown]
        said = " ".join(f"{key} explains most of the {words}: {100 * share:.0f} %." for words, key, share in tops)
        figure = charts.importances([each for _, each in shown])
        section.pictures.append(Picture("importance", table.title, said, table, figure, _IMPORTANCE))
    return section


def history_section(result: SearchResult) -> Section:
    """The best so far, and the learning curves, by each objective that was searched for."""
    section = Section("history", "Search history")
    for objective in result.config.objectives:
        how, entries = metric(objective), history(result.trials, objective)
        if not entries:
            section.remarks.append(f"No trial was measured by {how.words}.")
            continue
        body = [
            (
                str(entry.trial.number), entry.trial.status, f"{entry.samples_seen:,}",
                estimates.text(estimate(entry.trial, objective), objective),
                "–" if entry.best is None else how.text(entry.best),
            )
            for entry in entries
        ]  # fmt: skip
        head = ("trial", "status", "images seen by all", how.label, "best so far")
        table = Table(f"Best {how.words} so far", head, tuple(body))
        figure, said = charts.history(entries, objective), _history_words(entries, objective)
        section.pictures.append(Picture(f"history-{objective}", table.title, said, table, figure, _HISTORY))
        if any(sum(objective in each.objectives for each in mine) > 1 for mine in result.rung_results.values()):
            section.pictures.append(_learning_curves(result, objective))
    return section


def _history_words(entries: Sequence[HistoryEntry], objective: str) -> str:
    how, last = metric(objective), entries[-1]
    if last.best is None:
        return f"No trial trained to the end, so there is no best {how.words} yet."
    found = next(entry for entry in entries if entry.best == last.best)
    return (
        f"Trial {found.trial.number} reached the best {how.words}, {how.text(last.best)} {how.unit}, after"
        f" {found.samples_seen:,} of {last.samples_seen:,} images seen by all trials."
    )


def _learning_curves(result: SearchResult, objective: str) -> Picture:
    how, results = metric(objective), result.rung_results
    body = [
        (str(trial.number), trial.status, f"{each.samples_seen:,}", how.text(each.objectives[objective]))
        for trial in result.trials
        for each in results[trial.trial_id]
        if objective in each.objectives
    ]
    table = Table(
        f"{_capital(how.words)} of each trial by rung", ("trial", "status", "images seen", how.label), tuple(body)
    )
    figure = charts.learning_curves(results, result.trials, objective)
    return Picture(f"curves-{objective}", table.title, "Each line is a trial, each mark a rung.", table, figure)


def budget_section(result: SearchResult) -> Section:
    """What each trial spent, and what early stopping saved."""
    allowed, unit = result.config.budget, UNITS[result.config.budget.kind]
    body = [
        (
            str(trial.number), trial.status, _amount(spent(trial, allowed.kind), allowed.kind),
            _amount(unspent(trial, allowed), allowed.kind), f"{trial.budget.samples_seen:,}",
            f"{trial.budget.flops:.3g}", f"{trial.budget.core_seconds:,.1f}",
        )
        for trial in result.trials
    ]  # fmt: skip
    head = ("trial", "status", f"spent, {unit}", "saved", "images seen", "FLOPs", "core-seconds")
    table = Table(f"{_capital(unit)} by trial", head, tuple(body))
    figure = charts.budgets(result.trials, allowed)
    picture = Picture("budget", table.title, _saved_words(result), table, figure, _BUDGET)
    return Section("budget", "Budget and early stopping", [picture])


def _saved_words(result: SearchResult) -> str:
    allowed = result.config.budget
    unit, stopped = UNITS[allowed.kind], result.count("stopped")
    said = f"Each trial may spend {allowed.amount:,.6g} {unit}."
    if result.config.halving is None:
        return f"{said} Every trial got its whole budget: the search has no early stopping."
    if not stopped:
        return f"{said} No trial was stopped early, so nothing was saved."
    left, whole = saved(result.trials, allowed)
    return (
        f"{said} Early stopping of {stopped} of {len(result.trials)} trials saved {_amount(left, allowed.kind)} of"
        f" {_amount(whole, allowed.kind)} {unit}: {left / whole:.0%}."
    )


def _amount(value: float, kind: str) -> str:
    """Part of a budget: whole images, tenths of a second, operations in three digits."""
    return f"{value:.3g}" if kind == "flops" else f"{value:,.{1 if kind == 'core_seconds' else 0}f}"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
