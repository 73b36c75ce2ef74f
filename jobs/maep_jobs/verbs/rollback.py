"""`maep rollback`: give the alias `champion` back to the version that had it before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maep.tracking.registry import by_alias, roll_back
from maep_jobs.arguments import parse, parser, plan_text
from maep_jobs.terminal.standard_output import print_json

_EXAMPLES = """  maep rollback
  maep rollback --to 3
  maep rollback --tracking.model purifier-digits --tracking.uri http://mlflow:5000"""


@dataclass(frozen=True)
class RollbackConfig:
    """Nothing but `tracking` is configured."""


def main(argv: Sequence[str]) -> int:
    """Runs the verb. Endpoints that follow the alias take the version within their `follow_s`, without a restart."""
    made = parser("rollback", "Give the alias champion back to the version before.", _EXAMPLES, output=False)
    made.add_argument("--to", type=int, metavar="N", help="to version N instead")
    job = parse(made, RollbackConfig, argv)
    target = "the version before" if job.options.to is None else f"version {job.options.to}"
    if job.options.dry_run:
        print(plan_text(job, [f"moves the alias champion of {job.tracking.model} back to {target}"]), end="")
        return 0
    left, reached = roll_back(job.tracking, "champion", job.options.to)
    holder = by_alias(job.tracking, "champion")
    assert holder is not None
    if job.options.json:
        print_json({"left": left, "champion": reached, "sha256": holder.sha256})
    else:
        print(f"{job.tracking.model} version {reached}, {holder.sha256[:12]}, is champion again (it was {left})")
    return 0
