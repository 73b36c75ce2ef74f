"""The charts of what came out: the map, the front, and which settings mattered."""

from __future__ import annotations

from collections.abc import Sequence

from maep.evaluate.report.page import Picture
from maep.evaluate.report.table import Table
from maep.tune.metrics import estimates
from maep.tune.metrics.estimates import MEASURES, estimate, finished, measure
from maep.tune.pareto import front
from maep.tune.record import TrialRecord
from maep.tune.report import drawing, maps
from maep.tune.report.heat_map import BEST, LEVEL, heat_map
from maep.tune.report.importance import importance
from maep.tune.report.maps import Cell, Map
from maep.tune.report.section import Section, setting_text
from maep.tune.results import Result

COSTS = tuple(name for name, how in MEASURES.items() if how.lower_is_better)
_CELLS = (
    "Only trials that trained to the end fill a cell. It holds the value, its 95 % interval (Wilson) and n, the dev"
    f" images it is over; {BEST} is the best, {LEVEL} overlaps its interval: no difference from it is shown. Colours"
    " span the intervals, so what may be noise looks alike. The interval covers the choice of images and not the seed"
    " of training: only cells of several seeds, whose interval holds each of them, show what another seed does. What is"
    " no accuracy was measured once, without an interval."
)
_CHOSEN = (
    "Trials of a cell differ in other settings too: it shows the best of them, and more trials are more chances to look"
    " good."
)
_REPEATS = (
    "Repeats by seed are averaged. All of them saw the same images, so the interval is that of one set of images,"
    " widened to hold each repeat."
)


def map_section(result: Result) -> Section:
    """A map for each objective that was measured."""
    section = Section("map", _map_title(result))
    on = maps.pair(result.trials, result.space)
    if not on:
        section.remarks.append("No setting of the space has two values among the trials, so there is no map.")
        return section
    found = [maps.chart(result.trials, result.space, objective, on) for objective in result.objectives]
    section.remarks.extend(maps.verdict(each) for each in found if not each.filled)
    shown = [each for each in found if each.filled]
    if shown:
        section.remarks.extend(_how_to_read(shown))
    for each in shown:
        title = f"{measure(each.objective).label} by {' and '.join(maps.short(key) for key in on)}"
        section.pictures.append(
            Picture(f"map-{each.objective}", title, maps.verdict(each), _map_table(title, each), heat_map(each))
        )
    return section


def _how_to_read(shown: Sequence[Map]) -> list[str]:
    """For all maps of a search: they have the same cells."""
    texts, first = [_CELLS], shown[0]
    if first.chosen:
        texts.append(_CHOSEN)
    elif any(len(cell.trials) > 1 for cell in first.filled):
        texts.append(_REPEATS)
    if first.reference is not None:
        settings = setting_text((first.reference.trials or first.reference.tried)[0].settings)
        texts.append(f"The reference stands beside the space ({settings}) and is not compared in words.")
    return texts


def _map_title(result: Result) -> str:
    on = [maps.short(key).replace("_", " ") for key in maps.pair(result.trials, result.space)]
    return f"Map: {' × '.join(on)}" if on else "Map"


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
    return estimates.text(cell.found, objective), images, str(len(cell.tried)), which


def front_section(result: Result) -> Section:
    """The first objective against each other one; where it was alone, against what its trials cost."""
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
            estimates.text(estimate(trial, first), first),
            setting_text(trial.settings),
        )
        for trial in sorted(kept, key=lambda t: t.objectives[other], reverse=not how.lower_is_better)
    ]
    head = (how.label, "best trial", measure(first).label, "settings")
    return Table(f"Best {measure(first).words} under a limit on {how.words}", head, tuple(body))


def importance_section(result: Result) -> Section:
    """What the objectives that were looked for varied with."""
    section = Section("importance", "Which settings mattered")
    every = [importance(result.trials, result.space, name) for name in result.config.objectives]
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
