"""`maep promote`: send a purifier through the gate to the alias `champion`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from maep.evaluate.config import EvaluateConfig, GateConfig
from maep.tracking.purifier_ref import FORMS, PurifierRef
from maep.tracking.resolve import resolve
from maep_jobs.arguments import parse, parser, plan_text
from maep_jobs.pipeline.gate import send_through_gate
from maep_jobs.terminal.standard_output import print_json

_EXAMPLES = """  maep promote outputs/purifier/model
  maep promote runs:/RUN_ID --gate.clean_floor 0.87
  maep promote models:/purifier/3 --force"""


@dataclass(frozen=True)
class PromoteConfig:
    """How the candidate is measured, and what it must hold."""

    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    gate: GateConfig = field(default_factory=GateConfig)


def main(argv: Sequence[str]) -> int:
    """Runs the verb; exit status 1 where the gate refuses."""
    made = parser("promote", "Register a purifier and, if it passes the gate, make it champion.", _EXAMPLES)
    made.add_argument("purifier", metavar="URI", help=FORMS)
    made.add_argument("--force", action="store_true", help="promote also what the gate refuses; recorded")
    job = parse(made, PromoteConfig, argv, default="cifar10/promote")
    purifier = PurifierRef.parse(job.options.purifier)
    if job.options.dry_run:
        line = f"evaluates {purifier} on {job.settings.gate.images}, then moves the alias champion"
        print(plan_text(job, [line]), end="")
        return 0
    candidate = resolve(purifier, job.tracking)
    settings, options = job.settings, job.options
    verdict = send_through_gate(
        candidate, settings.evaluate, settings.gate, job.tracking, options.output, options.force
    )
    if options.json:
        print_json(asdict(verdict))
    else:
        print(f"purifier version {verdict.version}: {'champion' if verdict.champion else 'refused'}")
        print("\n".join(f"  {reason}" for reason in verdict.reasons))
    return 0 if verdict.champion else 1
