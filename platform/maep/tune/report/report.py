"""The page of a search, `report.html`, and its charts as PNG beside it: all from what lies in the output folder."""

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
from maep.tune.metrics.estimates import estimate, measure
from maep.tune.report import drawing, maps
from maep.tune.report.history_charts import budget_section, course_section
from maep.tune.report.pictures import front_section, importance_section, map_section
from maep.tune.report.section import Section, setting_text, value_text
from maep.tune.results import BEST, TABLE, Result, best_yaml
from maep.tune.search.space import Axis

REPORT = "report.html"


def write_report(result: Result, command: str | None = None) -> list[Path]:
    """Writes the page and a PNG for each chart into the search's folder, and says where; the page comes first.

    `command` is the line that made the search.
    """
    sections = all_sections(result)
    every = [picture for section in sections for picture in section.pictures]
    for picture in every:
        storage.write_bytes(result.folder / f"{picture.name}.png", png(picture.figure))
    storage.write_bytes(result.folder / REPORT, _page(result, sections, command).encode())
    return [result.folder / REPORT, *(result.folder / f"{picture.name}.png" for picture in every)]


def all_sections(result: Result) -> list[Section]:
    """The map, the front, importance, the course of the search, and what early stopping saved."""
    made = (map_section, front_section, importance_section, course_section, budget_section)
    return [section(result) for section in made]


def _page(result: Result, sections: list[Section], command: str | None) -> str:
    template = page.environment("maep.tune.report").get_template("report.html")
    return template.render(
        title=_title(result),
        facts=facts(result),
        verdict=verdict(result),
        failures=failures(result),
        sections=sections,
        uris=page.svg_uris(picture for section in sections for picture in section.pictures),
        trials=trials_table(result),
        best=best_yaml(result, result.best) if result.best else None,
        best_file=result.folder / BEST,
        phases=[name for name in ("pretrain", "finetune") if result.best and result.best.configuration.get(name)],
        table_file=TABLE,
        first=result.config.objectives[0],
        smaller=measure(result.config.objectives[0]).lower_is_better,
        command=command,
        configuration=yaml.safe_dump(config.to_dict(result.config), sort_keys=False, allow_unicode=True),
        mark=" (failed)",
    )


def _title(result: Result) -> str:
    names = ", ".join(measure(name).words for name in result.config.objectives)
    return f"Search for {names} on {result.config.finetune.data.name}"


def verdict(result: Result) -> list[str]:
    """What came out, a sentence or two each: the best trial, what it is not shown to differ from, what it is worth."""
    first = result.config.objectives[0]
    how, best = measure(first), result.best
    if best is None:
        return [_no_best(result)]
    under = _limits(result)
    said = [
        f"Best by {how.words}{under}: trial {best.number} ({setting_text(best.settings)}),"
        f" {estimates.with_unit(estimate(best, first), first)}."
    ]
    if on := maps.pair(result.trials, result.space):
        found = maps.chart(result.trials, result.space, first, on)
        said.append(f"On the map{', limits aside' if result.config.limits else ''}: {maps.verdict(found)}")
    if not how.lower_is_better:
        said.append(
            "These dev images have chosen the best of several trials, so its figure is optimistic. What it is worth,"
            " images say that chose nothing: maep evaluate, on test. The gate of --promote measures it anew, but on dev"
            " images too, of which some are these."
        )
    return said


def _no_best(result: Result) -> str:
    try:
        pareto.best(result.trials, result.config.objectives[0], result.config.limits)
    except ConfigError as error:
        return f"No trial is best: {error}."
    raise AssertionError("a trial is best")


def _limits(result: Result) -> str:
    words = []
    for name, limit in result.config.limits.items():
        how = measure(name)
        words.append(f"{how.words} {'at most' if how.lower_is_better else 'at least'} {how.text(limit)} {how.unit}")
    return f", with {' and '.join(words)}" if words else ""


def failures(result: Result) -> list[tuple[int, str, str]]:
    """Number, settings and reason of each trial that failed."""
    return [
        (trial.number, setting_text(trial.settings), trial.reason or "no reason was recorded")
        for trial in result.trials
        if trial.status == "failed"
    ]


def facts(result: Result) -> dict[str, str]:
    """What was searched, and on what the figures are."""
    asked, trials = result.config, result.trials
    ended = {status: result.count(status) for status in ("done", "stopped", "failed")}
    space = "; ".join(f"{key}: {axis_text(axis)}" for key, axis in asked.space.items())
    budget = f"{asked.budget.amount:,.6g} {drawing.KINDS[asked.budget.kind]} for each trial{_used(result)}"
    return {
        "objectives": ", ".join(measure(name).words for name in asked.objectives) + _limits(result),
        "space": space or "settings fixed by hand",
        **({"constraints": ", ".join(asked.constraints)} if asked.constraints else {}),
        "searcher": asked.searcher + (f", successive halving by {asked.halving.factor}" if asked.halving else ""),
        "trials": f"{len(trials)} ended: {ended['done']} trained to the end, {ended['stopped']} stopped early,"
        f" {ended['failed']} failed",
        "budget": budget,
        "spent": f"{sum(t.budget.samples_seen for t in trials):,} images seen,"
        f" {sum(t.budget.core_seconds for t in trials) / 3600:,.2f} core-hours of training",
        "measured on": f"the first {asked.measure.num_images} dev images of {asked.finetune.data.name}, before"
        f" {asked.finetune.classifiers[0]}",
        **_attacks(result),
        "time": f"{min(t.started for t in trials)} to {max(t.ended for t in trials)}",
        "seed": str(asked.seed),
        "version": f"maep {__version__}",
    }


def _used(result: Result) -> str:
    """What trials that trained to the end have spent of it, where that is measured and so never quite the same."""
    kind = result.config.budget.kind
    spent = [getattr(trial.budget, kind) for trial in result.trials if trial.status == "done"]
    return f"; {min(spent):,.6g} to {max(spent):,.6g} were spent" if spent and min(spent) < max(spent) else ""


def _attacks(result: Result) -> dict[str, str]:
    """Under which attack an accuracy was measured: without it the figure means nothing."""
    how, eps = result.config.measure, result.config.finetune.attacks.eps
    budget = eps if how.eps is None else how.eps
    through = budget if how.adaptive_eps is None else how.adaptive_eps
    few = f", on the first {how.adaptive_images} images" if how.adaptive_images else ""
    texts = {
        "oblivious_accuracy": f"right after each of {', '.join(how.oblivious)}, {how.steps} steps at"
        f" {eps_label(budget)}, made on the bare classifier: a lower bar",
        "adaptive_accuracy": f"{how.adaptive}, {how.adaptive_steps} steps at {eps_label(through)} through purifier and"
        f" classifier{few}",
        "latency_ms": f"the median of {how.latency_passes} passes on one thread",
    }
    return {measure(name).words: text for name, text in texts.items() if name in result.objectives}


def axis_text(axis: Axis) -> str:
    """The values of an axis in words."""
    if axis.choice is not None:
        return ", ".join(value_text(value) for value in axis.choice)
    ends = axis.uniform or axis.log_uniform or axis.integer
    assert ends is not None
    kind = "evenly in the logarithm" if axis.log_uniform else "whole numbers" if axis.integer else "evenly"
    return f"{ends[0]:.4g} to {ends[1]:.4g}, {kind}"


def trials_table(result: Result) -> Table:
    """Every trial: how it ended, its settings, what it reached and what it took."""
    keys = list(dict.fromkeys(key for trial in result.trials for key in trial.settings))
    body = []
    for trial in result.trials:
        settings = [value_text(trial.settings[key]) if key in trial.settings else "–" for key in keys]
        reached = [
            estimates.text(estimate(trial, name), name) if name in trial.objectives else "–"
            for name in result.objectives
        ]
        name = f"{trial.number}{' (failed)' if trial.status == 'failed' else ''}"
        body.append((name, trial.trial_id, trial.status, *settings, *reached, f"{trial.budget.samples_seen:,}"))
    heads = [measure(name).label for name in result.objectives]
    return Table(
        "All trials; of one that was stopped early, as it stood at its last rung",
        ("trial", "id", "status", *keys, *heads, "images seen"),
        tuple(body),
    )
