"""`maep demo`: the whole chain on scikit-learn's digits, in minutes, with a picture and what to try next."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from maep_jobs.arguments import Job, parse, parser
from maep_jobs.pipeline.stages import PipelineConfig, stages
from maep_jobs.terminal.shell import program
from maep_jobs.verbs.run import execute, with_options

_SUMMARY = "Run the whole chain on scikit-learn's digits, about 4 minutes on 2 cores; writes below the current folder."
_EXAMPLES = """  maep demo
  maep demo --serve.port 8080 --keep
  maep demo --output outputs/longer --finetune.loop.samples 60000"""
_NEXT = """
{picture} shows digits as they are, attacked, purified, the attack and what is left of it.

next:
  {maep} serve --model {champion}{classifier}
      serves the champion, with a page to try it on http://127.0.0.1:8000/
  {maep} demo --output {output} --keep
      trains nothing again and leaves the endpoint up
  {maep} run cifar10/pipeline --dry-run
      says what the same chain would do on CIFAR-10
  {maep} serve --model bundled:cifar10
      serves the CIFAR-10 purifier that ships with maep"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb; the arguments are those of `maep run`."""
    made = with_options(parser("demo", _SUMMARY, _EXAMPLES))
    made.set_defaults(output=Path("outputs/demo"))
    job = parse(made, PipelineConfig, argv, default="digits/pipeline")
    output = job.options.output
    os.environ.setdefault("MAEP_CACHE", str((output / "cache").absolute()))  # nothing is left elsewhere
    if not job.options.dry_run:
        print(
            "demo: classifiers, autoencoder, purifier and rival on digits; about 4 minutes on 2 cores", file=sys.stderr
        )
    status = execute(job)
    if status == 0 and not job.options.dry_run and not job.options.json:
        print(next_steps(job))
    return status


def next_steps(job: Job[PipelineConfig]) -> str:
    """What to look at and to try now: lines that work as they are printed."""
    output = job.options.output
    trained = {stage.name: stage.folder / "model" for stage in stages(job.settings, output)}
    spec = job.settings.serve.classifier
    protected = f" --classifier {shlex.quote(str(trained.get(f'classifier-{spec}', spec)))}" if spec else ""
    return _NEXT.format(
        maep=program(),
        picture=output / "purified.png",
        champion=job.settings.serve.model,
        classifier=protected,
        output=shlex.quote(str(output)),
    )
