"""`maep evaluate`: measure purifiers under each threat model beside the baselines, or compare two of them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from maep.artifact import Artifact
from maep.data.lists import named
from maep.errors import ConfigError, UserError
from maep.evaluate.config import EvaluateConfig, eps_label
from maep.evaluate.protocol import presets
from maep.evaluate.protocol.presets import Traits
from maep.evaluate.protocol.run import Progress, evaluate
from maep.evaluate.report.table import headline, markdown, notes, terminal
from maep.evaluate.results import compare, summary
from maep.evaluate.results.summary import Result
from maep.tracking.client import hide_secrets
from maep.tracking.purifier_ref import PurifierRef
from maep.tracking.resolve import resolve
from maep_jobs import report
from maep_jobs.arguments import Job, parse, parser, plan_text
from maep_jobs.terminal.progress import Bar, wide
from maep_jobs.terminal.standard_output import print_json

_EXAMPLES = """  maep evaluate --config cifar10/evaluate --purifier maep=bundled:cifar10
  maep evaluate --purifier mine=outputs/purifier/model --purifier conv=outputs/conv/model --num_images 256
  maep evaluate --purifier champion=models:/purifier@champion --classifiers cifar10_resnet56
  maep evaluate --compare outputs/monday outputs/tuesday:conv --markdown"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    made = parser(
        "evaluate",
        "Evaluate purifiers under each threat model; run it again after a kill to resume.",
        _EXAMPLES,
    )
    made.add_argument(
        "--purifier",
        action="append",
        default=[],
        metavar="NAME=URI",
        help="a purifier and its name; may be repeated",
    )
    made.add_argument(
        "--compare",
        nargs=2,
        metavar="FOLDER[:PURIFIER]",
        help="compare two purifiers of finished evaluations by a paired test, evaluating nothing",
    )
    made.add_argument("--markdown", action="store_true", help="print the tables as Markdown on standard output")
    job = parse(made, EvaluateConfig, argv, default="cifar10/evaluate")
    if job.options.json and job.options.markdown:
        raise ConfigError("--json and --markdown: choose one")
    return _compare(job.options) if job.options.compare else _measure(job, argv)


def _measure(job: Job[EvaluateConfig], argv: Sequence[str]) -> int:
    purifiers = dict(_named(text) for text in job.options.purifier or ["maep=bundled:cifar10"])
    if job.options.dry_run:
        print(plan_text(job, plan(job.settings, purifiers, job.options.output)), end="")
        return 0
    artifacts = {name: resolve(ref, job.tracking) for name, ref in purifiers.items()}
    result = run_evaluation(job.settings, artifacts, job.options.output)
    command = hide_secrets(shlex.join(["maep", "evaluate", *argv]))
    page = report.write(result, job.settings, artifacts, command)
    if job.options.json:
        print_json(result.values)
    elif job.options.markdown:
        print(markdown(headline(result), notes(result)), end="")
    else:
        wide(Console()).print(terminal(result))
        print(f"result: {result.folder}")
        print(f"report: {page}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    """Prints the comparison of two purifiers."""
    if options.purifier:
        raise ConfigError("--purifier and --compare: choose one; --compare takes finished evaluations, FOLDER:PURIFIER")
    (a, a_name), (b, b_name) = (_side(text) for text in options.compare)
    if options.dry_run:
        print(f"# compare {a_name or 'the purifier'} of {a} with {b_name or 'the purifier'} of {b}")
        return 0
    found = compare.compare(summary.read(a), summary.read(b), a_name, b_name)
    if options.json:
        print_json(found.values)
    elif options.markdown:
        print(compare.to_markdown(found), end="")
    else:
        wide(Console()).print(compare.to_terminal(found))
    return 0


def run_evaluation(settings: EvaluateConfig, artifacts: dict[str, Artifact], output: Path) -> Result:
    """Evaluates with a progress bar."""
    bar = Bar("evaluate")

    def show(progress: Progress) -> None:
        bar.show(progress.done, progress.total, progress.eta_seconds)

    try:
        return evaluate(settings, artifacts, output, show)
    finally:
        bar.close()


def plan(settings: EvaluateConfig, purifiers: Iterable[str], output: Path) -> list[str]:
    """The lines of the plan: what is measured of the first purifier, assuming that it is not randomised."""
    names = [*settings.baselines, *purifiers]
    traits = [Traits(name, baseline=False, differentiable=True, randomised=False) for name in purifiers]
    total = min(len(named(settings.images)), settings.num_images or len(named(settings.images)))
    specs = {spec: spec for spec in settings.classifiers}
    columns = presets.columns(settings, traits[0], settings.classifiers[0], traits[1:], total)
    return [
        f"purifiers: {', '.join(names)}; classifiers: {', '.join(settings.classifiers)}; images: {settings.images}",
        *(
            f"{column.threat} at {eps_label(column.eps, column.norm)}, {column.num_images} images:"
            f" {', '.join(step.label(specs) for step in column.steps)}"
            for column in columns
            if column.steps
        ),
        f"result and report: {output}",
    ]


def _named(text: str) -> tuple[str, PurifierRef]:
    name, equals, uri = text.partition("=")
    if not equals or not name or not uri:
        raise UserError(f"--purifier {text!r}: write NAME=URI, such as mine=outputs/purifier/model")
    return name, PurifierRef.parse(uri)


def _side(text: str) -> tuple[Path, str | None]:
    """The folder, and the purifier after the last colon unless the whole text is a folder."""
    folder, colon, name = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return Path(text), None
    if not folder or not name:
        raise UserError(f"--compare {text!r}: write FOLDER or FOLDER:PURIFIER, such as outputs/evaluate:conv")
    return Path(folder), name
