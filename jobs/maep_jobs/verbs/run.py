"""`maep run`: the whole chain, from images to a checked endpoint; finished stages are not run again."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from maep.errors import ConfigError
from maep_jobs.arguments import Job, Parser, parse, parser, plan_text
from maep_jobs.pipeline.stages import PipelineConfig, run_pipeline, stages
from maep_jobs.terminal.progress import wide
from maep_jobs.terminal.standard_output import print_json

_SUMMARY = "Pretrain, finetune, gate, promote, evaluate, serve, check, stop. Finished stages are not run again."
_EXAMPLES = """  maep run digits/pipeline
  maep run cifar10/pipeline --output outputs/cifar10 --dry-run
  maep run cifar10/pipeline --finetune.loop.samples 500000 --keep"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb; exit status 1 where the gate refused the purifier."""
    made = with_options(parser("run", _SUMMARY, _EXAMPLES))
    made.add_argument("pipeline", metavar="PIPELINE", help="digits/pipeline, cifar10/pipeline or a YAML file")
    named, _ = made.parse_known_args(list(argv))
    if named.config:
        raise ConfigError(f"--config {named.config}: the pipeline is the first word, maep run {named.config}")
    return execute(parse(made, PipelineConfig, argv, default=named.pipeline))


def with_options(made: Parser) -> Parser:
    """`made` with what only a pipeline has."""
    made.add_argument("--keep", action="store_true", help="leave the endpoint up until Ctrl-C")
    made.add_argument("--force", action="store_true", help="promote also what the gate refuses; recorded")
    return made


def execute(job: Job[PipelineConfig]) -> int:
    """Runs the pipeline, or says what it would do, and returns the exit status."""
    options = job.options
    if options.dry_run:
        lines = [
            f"{stage.name}: {'done' if stage.is_done() else 'to do'}, {stage.folder}"
            for stage in stages(job.settings, options.output.absolute())
        ]
        then = "then: gate on dev images, promote, evaluate on test images, serve, check one golden request"
        print(plan_text(job, [*lines, then]), end="")
        return 0
    outcome = run_pipeline(job.settings, job.tracking, options.output, options.keep, options.force, wide(Console()))
    if options.json:
        print_json(outcome)
    if not outcome["champion"]:
        print("the gate refused the purifier: what was champion before stays it", file=sys.stderr)
    return 0 if outcome["champion"] else 1
