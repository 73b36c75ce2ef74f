"""`maep run`: the whole pipeline, from images to a checked endpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maep.errors import ConfigError
from maep_jobs.arguments import Job, JobParser
from maep_jobs.pipeline.config import PipelineConfig
from maep_jobs.terminal.standard_output import print_json

_SUMMARY = "Pretrain, finetune, gate, promote, evaluate, serve, check. Finished stages are reused."
_EXAMPLES = """  maep run digits/pipeline
  maep run cifar10/pipeline --output outputs/cifar10 --dry-run
  maep run cifar10/pipeline --finetune.loop.samples 500000 --keep"""


def parser() -> JobParser[PipelineConfig]:
    """The verb's options."""
    made = pipeline_parser("run", _SUMMARY, _EXAMPLES)
    made.add_argument("pipeline", metavar="PIPELINE", help="digits/pipeline, cifar10/pipeline or a YAML file")
    return made


def pipeline_parser(verb: str, summary: str, examples: str) -> JobParser[PipelineConfig]:
    """The options of a verb that runs a pipeline."""
    made = JobParser(verb, PipelineConfig, summary, examples)
    made.add_argument("--keep", action="store_true", help="keep the endpoint running until Ctrl-C")
    made.add_argument("--force", action="store_true", help="promote even if the gate refuses; recorded on the version")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb; exit status 1 where the gate refuses the purifier."""
    return execute(parser().parse_job(argv, _pipeline))


def _pipeline(options: argparse.Namespace) -> str:
    if options.config:
        raise ConfigError(f"--config {options.config}: write maep run {options.config}")
    return str(options.pipeline)


def execute(job: Job[PipelineConfig]) -> int:
    """Runs the pipeline, or prints its plan, and returns the exit status."""
    from maep_jobs.pipeline.stages import run_pipeline, stages

    options = job.options
    if options.dry_run:
        lines = [
            f"{stage.name}: {'done' if stage.is_done() else 'to do'}, {stage.folder}"
            for stage in stages(job.settings, options.output.absolute())
        ]
        then = "then: gate on dev images, promote, evaluate on test images, serve, check one response"
        return job.print_plan(*lines, then)
    outcome = run_pipeline(job.settings, job.tracking, options.output, options.keep, options.force)
    if options.json:
        print_json(outcome)
    if not outcome["champion"]:
        print("the gate refused the purifier: the champion is unchanged", file=sys.stderr)
    return 0 if outcome["champion"] else 1
