"""Writes the page of a search, `report.html`, and each chart as a PNG beside it, from the search's output folder."""

from __future__ import annotations

from pathlib import Path

import yaml

from maep import __version__, config, storage
from maep.errors import ConfigError
from maep.evaluate.config import eps_label
from maep.evaluate.report import page
from maep.evaluate.report.drawing import png
from maep.evaluate.report.table import Table
from maep.tune import pareto
from maep.tune.metrics import estimates
from maep.tune.metrics.estimates import estimate, metric
from maep.tune.report import maps
from maep.tune.report.sections import Section, all_sections
from maep.tune.results import BEST, PHASES, TABLE, SearchResult, best_yaml
from maep.tune.search.space import axis_text, setting_text, value_text

REPORT = "report.html"
UNITS = {"samples_seen": "images seen", "flops": "floating-point operations", "core_seconds": "core-seconds"}
"""The unit of each kind of budget."""
_FAILED = " (failed)"
"""Marks the rows of failed trials."""


def write_report(result: SearchResult, command: str | None = None) -> list[Path]:
    """Writes the page and a PNG per chart into the search's folder and returns their paths, the page first.

    `command` is the command line that made the search.
    """
    sections = all_sections(result)
    pictures = {result.folder / f"{each.name}.png": each for section in sections for each in section.pictures}
    for path, picture in pictures.items():
        storage.write_bytes(path, png(picture.figure))
    storage.write_bytes(result.folder / REPORT, _page(result, sections, command).encode())
    return [result.folder / REPORT, *pictures]


def _page(result: SearchResult, sections: list[Section], command: str | None) -> str:
    first, best = result.config.objectives[0], result.best
    names = ", ".join(metric(name).words for name in result.config.objectives)
    return (
        page.environment("maep.tune.report")
        .get_template("report.html")
        .render(
            title=f"Search for {names} on {result.config.finetune.data.name}",
            facts=facts(result),
            verdict=verdict(result),
            failures=[trial for trial in result.trials if trial.status == "failed"],
            setting_text=setting_text,
            sections=sections,
            uris=page.svg_uris(picture for section in sections for picture in section.pictures),
            trials=trials_table(result),
            best=best_yaml(result, best) if best else None,
            best_file=result.folder / BEST,
            phases=[name for name in PHASES if best and best.configuration.get(name)],
            table_file=TABLE,
            first=first,
            ascending=metric(first).lower_is_better,
            command=command,
            configuration=yaml.safe_dump(config.to_dict(result.config), sort_keys=False, allow_unicode=True),
            mark=_FAILED,
        )
    )


def verdict(result: SearchResult) -> list[str]:
    """The outcome in sentences: the best trial, what it is not shown to differ from, and how far to trust it."""
    first, limits = result.config.objectives[0], result.config.limits
    how = metric(first)
    if result.best is None:
        try:
            pareto.best(result.trials, first, limits)
        except ConfigError as error:
            return [f"There is no best trial: {error}."]
    assert result.best is not None
    reached = estimates.with_unit(estimate(result.best, first), first)
    settings = setting_text(result.best.settings)
    said = [f"Best by {how.words}{_limits(result)}: trial {result.best.number} ({settings}), {reached}."]
    if on := maps.map_keys(result.trials, result.space):
        found = maps.make_map(result.trials, result.space, first, on)
        said.append(f"On the map{', which ignores the limits' if limits else ''}: {maps.verdict(found)}")
    if not how.lower_is_better:
        said.append(
            "The figure of the best trial is optimistic, because the same dev images selected it. Measure it with maep"
            " evaluate on test images. The gate of --promote measures it again, but partly on the same dev images."
        )
    return said


def _limits(result: SearchResult) -> str:
    words = []
    for name, limit in result.config.limits.items():
        how = metric(name)
        words.append(f"{how.words} {'at most' if how.lower_is_better else 'at least'} {how.text(limit)} {how.unit}")
    return f", with {' and '.join(words)}" if words else ""


def facts(result: SearchResult) -> dict[str, str]:
    """What was searched, and how it was measured."""
    asked, trials = result.config, result.trials
    return {
        "objectives": ", ".join(metric(name).words for name in asked.objectives) + _limits(result),
        "space": "; ".join(f"{key}: {axis_text(axis)}" for key, axis in asked.space.items()) or "fixed settings only",
        **({"constraints": ", ".join(asked.constraints)} if asked.constraints else {}),
        "searcher": asked.searcher + (f", successive halving by {asked.halving.factor}" if asked.halving else ""),
        "trials": f"{len(trials)}: {result.count('done')} trained to the end, {result.count('stopped')} stopped early,"
        f" {result.count('failed')} failed",
        "budget": f"{asked.budget.amount:,.6g} {UNITS[asked.budget.kind]} per trial{_used(result)}",
        **_saved(result),
        "spent": f"{sum(t.budget.samples_seen for t in trials):,} images seen,"
        f" {sum(t.budget.core_seconds for t in trials) / 3600:,.2f} core-hours of training",
        "measured on": f"the first {asked.measure.num_images} dev images of {asked.finetune.data.name}, in front of"
        f" {asked.finetune.classifiers[0]}",
        **_attacks(result),
        "time": f"{min(t.started for t in trials)} to {max(t.ended for t in trials)}",
        "seed": str(asked.seed),
        "version": f"maep {__version__}",
    }


def _used(result: SearchResult) -> str:
    """What finished trials spent, where the budget is measured and so varies."""
    spent = [getattr(trial.budget, result.config.budget.kind) for trial in result.trials if trial.status == "done"]
    return f"; {min(spent):,.6g} to {max(spent):,.6g} spent" if spent and min(spent) < max(spent) else ""


def _saved(result: SearchResult) -> dict[str, str]:
    """What early stopping saved, of what all trials but the failed ones would have spent without it."""
    kind, amount = result.config.budget.kind, result.config.budget.amount
    spent = [(trial.status, float(getattr(trial.budget, kind))) for trial in result.trials if trial.status != "failed"]
    saved = sum(max(amount - used, 0.0) for status, used in spent if status == "stopped")
    whole = saved + sum(used for _, used in spent)
    return {"early stopping": f"saved {saved:,.6g} of {whole:,.6g} {UNITS[kind]}: {saved / whole:.0%}"} if saved else {}


def _attacks(result: SearchResult) -> dict[str, str]:
    """How each objective was measured: an accuracy means nothing without its attack."""
    how, eps = result.config.measure, result.config.finetune.attacks.eps
    budget = eps if how.eps is None else how.eps
    through = budget if how.adaptive_eps is None else how.adaptive_eps
    few = f", on the first {how.adaptive_images} images" if how.adaptive_images else ""
    texts = {
        "oblivious_accuracy": f"worst case of {', '.join(how.oblivious)}, {how.steps} steps at {eps_label(budget)}, on"
        " the bare classifier: a lower bar",
        "adaptive_accuracy": f"{how.adaptive}, {how.adaptive_steps} steps at {eps_label(through)} through purifier and"
        f" classifier{few}",
        "latency_ms": f"median of {how.latency_passes} forward passes on one thread",
    }
    return {metric(name).words: text for name, text in texts.items() if name in result.objectives}


def trials_table(result: SearchResult) -> Table:
    """Every trial with its status, settings, objectives and images seen."""
    keys = list(dict.fromkeys(key for trial in result.trials for key in trial.settings))
    body = []
    for trial in result.trials:
        settings = [value_text(trial.settings[key]) if key in trial.settings else "–" for key in keys]
        reached = [
            estimates.text(estimate(trial, name), name) if name in trial.objectives else "–"
            for name in result.objectives
        ]
        name = f"{trial.number}{_FAILED if trial.status == 'failed' else ''}"
        body.append((name, trial.trial_id, trial.status, *settings, *reached, f"{trial.budget.samples_seen:,}"))
    heads = [metric(name).label for name in result.objectives]
    title = "All trials; a stopped trial as measured at its last rung"
    return Table(title, ("trial", "id", "status", *keys, *heads, "images seen"), tuple(body))
