"""`maep demo`: the whole pipeline on scikit-learn's digits, in minutes, with a picture and what to try next."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from maep_jobs.arguments import Job, JobParser
from maep_jobs.pipeline.config import PipelineConfig
from maep_jobs.verbs.run import execute, pipeline_parser

_SUMMARY = "Run the whole pipeline on scikit-learn's digits: about 4 minutes on 2 cores, below the current folder."
_EXAMPLES = """  maep demo
  maep demo --serve.port 8080 --keep
  maep demo --output outputs/longer --finetune.loop.samples 60000"""
_NEXT = """
{picture}: rows of digits: clean, attacked, purified, the perturbation, and the remaining difference.

next:
  {maep} serve --model {champion}{classifier}
      serves the champion, with a page to try it at http://127.0.0.1:8000/
  {maep} demo --output {output} --keep
      reuses finished stages and keeps the endpoint running
  {maep} run cifar10/pipeline --dry-run
      prints what the same pipeline does on CIFAR-10
  {maep} serve --model bundled:cifar10
      serves the CIFAR-10 purifier that ships with maep"""


def parser() -> JobParser[PipelineConfig]:
    """The verb's options: those of `maep run`."""
    made = pipeline_parser("demo", _SUMMARY, _EXAMPLES)
    made.set_defaults(output=Path("outputs/demo"))
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    job = parser().parse_job(argv, default="digits/pipeline")
    output = job.options.output
    os.environ.setdefault("MAEP_CACHE", str((output / "cache").absolute()))  # the demo writes nowhere else
    if not job.options.dry_run:
        print("demo: classifiers, autoencoder and purifiers on digits; about 4 minutes on 2 cores", file=sys.stderr)
    status = execute(job)
    if status == 0 and not job.options.dry_run and not job.options.json:
        print(next_steps(job))
    return status


def next_steps(job: Job[PipelineConfig]) -> str:
    """What to look at and to try next: commands that work as printed."""
    from maep_jobs.pipeline.stages import PICTURE, stages
    from maep_jobs.terminal.shell import program

    output = job.options.output
    trained = {stage.name: stage.folder / "model" for stage in stages(job.settings, output)}
    spec = job.settings.serve.classifier
    protected = f" --classifier {shlex.quote(str(trained.get(f'classifier-{spec}', spec)))}" if spec else ""
    return _NEXT.format(
        maep=program(),
        picture=output / PICTURE,
        champion=job.settings.serve.model,
        classifier=protected,
        output=shlex.quote(str(output)),
    )
