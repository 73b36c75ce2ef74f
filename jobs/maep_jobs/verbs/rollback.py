"""`maep rollback`: move the alias `champion` back to an earlier version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maep_jobs.arguments import JobParser

_EXAMPLES = """  maep rollback
  maep rollback --to 3
  maep rollback --tracking.model purifier-digits --tracking.uri http://mlflow:5000"""


@dataclass(frozen=True)
class RollbackConfig:
    """No keys but `tracking`."""


def parser() -> JobParser[RollbackConfig]:
    """The verb's options."""
    summary = "Move the alias champion back to the version that had it before."
    made = JobParser("rollback", RollbackConfig, summary, _EXAMPLES, output=False)
    made.add_argument("--to", type=int, metavar="N", help="to version N instead")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    job = parser().parse_job(argv)
    target = "the previous version" if job.options.to is None else f"version {job.options.to}"
    if job.options.dry_run:
        return job.print_plan(f"move the alias champion of {job.tracking.model} to {target}")
    from maep.tracking.registry import by_alias, roll_back

    left, reached = roll_back(job.tracking, "champion", job.options.to)
    holder = by_alias(job.tracking, "champion")
    assert holder is not None
    text = f"{job.tracking.model} version {reached} ({holder.sha256[:12]}) is champion; it was version {left}"
    job.print_result({"left": left, "champion": reached, "sha256": holder.sha256}, text)
    return 0
