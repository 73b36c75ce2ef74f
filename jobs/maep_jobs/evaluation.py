"""Evaluations from the command line: the plan, the progress, the tables, and comparisons."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from maep.artifact import Artifact
from maep.errors import ConfigError
from maep.evaluate.config import EvaluateConfig, eps_label
from maep.evaluate.protocol import presets
from maep.evaluate.protocol.context import Context
from maep.evaluate.protocol.presets import Traits
from maep.evaluate.protocol.run import EvaluationProgress, evaluate
from maep.evaluate.report.table import headline, markdown, notes, render, terminal
from maep.evaluate.results import compare, summary
from maep.evaluate.results.summary import Result
from maep_jobs.terminal.progress import Bar, wide
from maep_jobs.terminal.standard_output import print_json


def run_evaluation(settings: EvaluateConfig, artifacts: dict[str, Artifact], output: Path) -> Result:
    """Evaluates with a progress bar."""
    bar = Bar("evaluate")

    def show(progress: EvaluationProgress) -> None:
        bar.show(progress.done, progress.total, progress.eta_seconds)

    try:
        return evaluate(settings, artifacts, output, show)
    finally:
        bar.close()


def plan(settings: EvaluateConfig, purifiers: Iterable[str], output: Path) -> list[str]:
    """What would be measured, one line each, taking the first purifier as deterministic."""
    names = [*settings.baselines, *purifiers]
    traits = [Traits(name, baseline=False, differentiable=True, randomised=False) for name in purifiers]
    total = len(Context(settings, {}, output).image_list)
    specs = {spec: spec for spec in settings.classifiers}
    columns = presets.columns(settings, traits[0], settings.classifiers[0], traits[1:], total)
    return [
        f"purifiers: {', '.join(names)}; classifiers: {', '.join(settings.classifiers)}; images: {settings.images}",
        *(
            f"{column.threat} at {eps_label(column.eps, column.norm)}, {column.num_images} images:"
            f" {', '.join(attack.label(specs) for attack in column.attacks)}"
            for column in columns
            if column.attacks
        ),
        f"result and report: {output}",
    ]


def print_tables(result: Result, as_markdown: bool) -> None:
    """Prints the tables of a result for a terminal, or as Markdown."""
    if as_markdown:
        print(markdown(headline(result), notes(result)), end="")
    else:
        wide(Console()).print(terminal(result))


def print_comparison(options: argparse.Namespace) -> int:
    """Prints two purifiers side by side; writes nothing."""
    if options.purifier:
        raise ConfigError("--purifier and --compare: --compare takes finished evaluations, as FOLDER:PURIFIER")
    (a, a_name), (b, b_name) = (compare.parse_side(text) for text in options.compare)
    if options.dry_run:
        print(f"# compare {a_name or 'the purifier'} of {a} with {b_name or 'the purifier'} of {b}")
        return 0
    found = compare.compare(summary.read(a), summary.read(b), a_name, b_name)
    if options.json:
        print_json(found.values)
    elif options.markdown:
        print(markdown(compare.tables(found), compare.notes(found)), end="")
    else:
        wide(Console()).print(render(compare.tables(found), compare.notes(found)))
    return 0
