"""`maep run`: the whole chain, from images to a checked endpoint; finished stages are not run again."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from maep_jobs.arguments import parse, parser, plan_text
from maep_jobs.pipeline import PipelineConfig, run_pipeline, stages

_EXAMPLES = """  maep run digits/pipeline
  maep run cifar10/pipeline --output outputs/cifar10 --dry-run
  maep run cifar10/pipeline --finetune.loop.samples 500000 --keep"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb; exit status 1 where the gate refused the purifier."""
    made = parser("run", "Pretrain, finetune, evaluate, gate, promote, serve, check, stop.", _EXAMPLES)
    made.add_argument("pipeline", metavar="NAME|FILE", help="digits/pipeline, cifar10/pipeline or a YAML file")
    made.add_argument("--keep", action="store_true", help="leave the endpoint up until Ctrl-C")
    made.add_argument("--force", action="store_true", help="promote also what the gate refuses; recorded")
    named, _ = made.parse_known_args(list(argv))
    job = parse(made, PipelineConfig, argv, default=named.pipeline)
    if job.options.dry_run:
        lines = [
            f"{stage.name}: {'done' if stage.is_done() else 'to do'}, {stage.folder}"
            for stage in stages(job.settings, job.options.output)
        ]
        print(plan_text(job, [*lines, "then: evaluate, gate, promote, serve, check one golden request"]), end="")
        return 0
    outcome = run_pipeline(job.settings, job.tracking, job.options.output, job.options.keep, job.options.force)
    if job.options.json:
        print(json.dumps(outcome))
    return 0 if outcome["champion"] else _refused(outcome["reasons"])


def _refused(reasons: list[str]) -> int:
    print("the gate refused the purifier; the endpoint serves what was champion before:", file=sys.stderr)
    print("\n".join(f"  {reason}" for reason in reasons), file=sys.stderr)
    return 1
