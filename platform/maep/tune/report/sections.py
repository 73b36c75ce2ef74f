"""The sections of a search's page: charts, each with a sentence and all its values, or the reason why there is none."""

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
from maep.tune.report.charts import BEST, LEVEL
from maep.tune.report.importance import importance
from maep.tune.report.maps import Cell, Map
from maep.tune.results import SearchResult
from maep.tune.search.space import setting_text

COSTS = ("latency_ms", "num_parameters")
_CELLS = (
    "A cell shows the value of its finished trials, the 95 % interval (Wilson) and n, the number"
    f" of dev images. {BEST} marks the best cell, {LEVEL} cells whose interval overlaps it: no difference is shown."
    " Colours span the intervals, so differences within noise look alike. The interval covers the choice of images, not"
    " the training seed; only cells with several seeds cover that. Latency and size are measured once, without an"
    " interval."
)
_CHOSEN = (
    "Trials of a cell differ in other settings too. The cell shows the best of them, so a cell with more trials looks"
    " better by chance."
)
_REPEATS = (
    "Repeats with other seeds are averaged; the interval is that of one set of images, widened to include each repeat."
)
_FRONT = (
    "Numbers are trial numbers, bars are 95 % intervals. The front joins measured values: where intervals overlap, a"
    " repeated search may put another trial on it."
)
_IMPORTANCE = (
    "fANOVA (Hutter et al. 2014): the share of a random forest's variance over the space that each setting explains"
    " alone; interactions belong to no setting. Out-of-bag R² says how well the forest predicts trials left out of its"
    " fit: 1 is perfect, 0 no better than the mean. Finished trials only."
)


@dataclass(frozen=True)
class Section:
    """The answer to one question; `remarks` also say what could not be drawn, and why. `key` is its anchor."""

    key: str
    title: str
    remarks: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def all_sections(result: SearchResult) -> list[Section]:
    """The map, the Pareto front and the importance of settings."""
    return [map_section(result), front_section(result), importance_section(result)]


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
            Picture(f"map-{each.objective}", title, maps.verdict(each), _map_table(title, each), charts.heat_map(each))
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
    """Which settings explain the objectives of the search."""
    section = Section("importance", "Which settings mattered")
    rows: list[tuple[str, ...]] = []
    for objective in result.config.objectives:
        words, found = metric(objective).words, importance(result.trials, result.space, objective)
        if not found.shares:
            section.remarks.append(f"{_capital(words)}: {found.why}.")
            continue
        key, share = next(iter(found.shares.items()))
        section.remarks.append(
            f"{key} explains most of the {words}: {100 * share:.0f} % (out-of-bag R² {found.explained:.2f},"
            f" {found.num_trials} trials)."
        )
        rows += [(key, words, f"{100 * share:.0f}") for key, share in found.shares.items()]
    if rows:
        section.remarks.append(_IMPORTANCE)
        header = ("setting", "objective", "share of the variance, %")
        section.tables.append(Table("Importance by fANOVA", header, tuple(rows)))
    return section


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
