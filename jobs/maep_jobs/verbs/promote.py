"""`maep promote`: register a purifier and, if it passes the gate, make it champion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from maep.tracking.purifier_ref import FORMS, PurifierRef
from maep_jobs.arguments import JobParser
from maep_jobs.pipeline.config import PromoteConfig

_EXAMPLES = """  maep promote outputs/purifier/model
  maep promote runs:/RUN_ID --gate.clean_floor 0.87
  maep promote models:/purifier/3 --force"""


def parser() -> JobParser[PromoteConfig]:
    """The verb's options."""
    summary = "Register a purifier and, if it passes the gate, make it champion. Exit status 1: the gate refused it."
    made = JobParser("promote", PromoteConfig, summary, _EXAMPLES)
    made.add_argument("purifier", metavar="URI", help=FORMS)
    made.add_argument(
        "--force", action="store_true", help="promote it even if the gate refuses; recorded on the version"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb; exit status 1 where the gate refuses."""
    job = parser().parse_job(argv, default="cifar10/promote")
    settings, options = job.settings, job.options
    purifier = PurifierRef.parse(options.purifier)
    if options.dry_run:
        return job.print_plan(f"evaluate {purifier} on {settings.gate.images}, then move the alias champion")
    from maep.tracking.resolve import resolve
    from maep_jobs.pipeline.gate import send_through_gate

    candidate = resolve(purifier, job.tracking)
    verdict = send_through_gate(
        candidate, settings.evaluate, settings.gate, job.tracking, options.output, options.force
    )
    headline = f"purifier version {verdict.version}: {'champion' if verdict.champion else 'refused'}"
    job.print_result(asdict(verdict), headline, *(f"  {reason}" for reason in verdict.reasons))
    return 0 if verdict.champion else 1
