"""`maep evaluate`: measure purifiers under each threat model, beside the baselines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from maep.artifact import Artifact
from maep.errors import UserError
from maep.evaluate.config import EvaluateConfig, adaptive_attacks, oblivious_attacks
from maep.evaluate.protocol import Progress, evaluate
from maep.evaluate.results import Result
from maep.evaluate.table import terminal
from maep.tracking.resolve import resolve
from maep_jobs.arguments import parse, parser, plan_text
from maep_jobs.progress import Bar, wide

_EXAMPLES = """  maep evaluate --config cifar10/evaluate --purifier maep=bundled:cifar10
  maep evaluate --purifier mine=outputs/purifier/model --purifier conv=outputs/conv/model --num_images 256
  maep evaluate --purifier champion=models:/purifier@champion --classifiers cifar10_resnet56"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    made = parser("evaluate", "Evaluate purifiers; killed and started again it repeats nothing.", _EXAMPLES)
    made.add_argument(
        "--purifier", action="append", default=[], metavar="NAME=URI", help="what to evaluate; may be repeated"
    )
    job = parse(made, EvaluateConfig, argv, default="cifar10/evaluate")
    purifiers = dict(_named(text) for text in job.options.purifier or ["maep=bundled:cifar10"])
    if job.options.dry_run:
        print(plan_text(job, plan(job.settings, purifiers, job.options.output)), end="")
        return 0
    artifacts = {name: resolve(uri, job.tracking) for name, uri in purifiers.items()}
    result = run_evaluation(job.settings, artifacts, job.options.output)
    if job.options.json:
        print(json.dumps(result.values))
    else:
        wide(Console()).print(terminal(result))
        print(f"result: {result.folder}")
    return 0


def run_evaluation(settings: EvaluateConfig, artifacts: dict[str, Artifact], output: Path) -> Result:
    """Evaluates with progress shown."""
    bar = Bar("evaluate")

    def show(progress: Progress) -> None:
        bar.show(progress.done, progress.total, progress.eta_seconds)

    try:
        return evaluate(settings, artifacts, output, show)
    finally:
        bar.close()


def plan(settings: EvaluateConfig, purifiers: dict[str, str], output: Path) -> list[str]:
    """What would be measured, a line each."""
    names = [*settings.baselines, *purifiers]
    attacks = ", ".join(attack.label for attack in oblivious_attacks(settings))
    through = ", ".join(attack.label for attack in adaptive_attacks(settings, settings.eps[0]))
    return [
        f"purifiers: {', '.join(names)}; classifiers: {', '.join(settings.classifiers)}; images: {settings.images}",
        f"oblivious at {settings.oblivious_eps * 255:g}/255: {attacks}",
        f"adaptive (or bpda) at {', '.join(f'{eps * 255:g}/255' for eps in settings.eps)}: {through}",
        f"result: {output}",
    ]


def _named(text: str) -> tuple[str, str]:
    name, equals, uri = text.partition("=")
    if not equals or not name or not uri:
        raise UserError(f"--purifier {text!r} is written NAME=URI, such as mine=outputs/purifier/model")
    return name, uri
