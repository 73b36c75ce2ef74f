"""`maep tune`: search for the best purifier within a budget, and report the result."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maep import storage
from maep.errors import ConfigError, Stopped
from maep.tune.config import TuneConfig
from maep_jobs.arguments import Job, JobParser, command_line
from maep_jobs.pipeline.config import PromoteConfig

if TYPE_CHECKING:
    from maep.tune.results import SearchResult

_EXAMPLES = """  maep tune --config digits/tune --output outputs/search
  maep tune --config digits/tune --dry-run
  maep tune --output outputs/search --resume
  maep tune --config digits/tune --budget.kind flops --budget.amount 2e12 --searcher random
  maep tune --config digits/tune --space '{mask_ratio: {choice: [0.25, 0.75]}}' --searcher grid
  maep tune --output outputs/search --resume --promote"""


def parser() -> JobParser[TuneConfig]:
    """The verb's options."""
    summary = "Search for the best purifier within a budget. If it is interrupted, resume with --output DIR --resume."
    made = JobParser("tune", TuneConfig, summary, _EXAMPLES)
    made.add_argument("--resume", action="store_true", help="resume the search in --output")
    made.add_argument("--address", help="Ray cluster to run the trials on (default: this machine)")
    made.add_argument(
        "--promote",
        nargs="?",
        const="",
        metavar="NAME|FILE",
        help="afterwards send the best purifier through the gate of this configuration (default: DATA/promote)",
    )
    made.add_argument(
        "--force", action="store_true", help="with --promote: promote even if the gate refuses; this is recorded"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb; exit status 1 where the gate refuses the winner."""
    job = parser().parse_job(argv, _resumed)
    from maep.tune.search import suggest
    from maep.tune.trial.plan import check_length
    from maep_jobs.search import winner

    suggest.check(job.settings)
    check_length(job.settings)
    if job.options.dry_run:
        from maep_jobs.search.plan import plan

        return job.print_plan(*plan(job.settings, job.options.output))
    gate = None
    if job.options.promote is not None:
        gate = winner.gate_settings(job.options.promote, job.settings.finetune.data.name, job.tracking)
    elif job.options.force:
        raise ConfigError("--force: needs --promote, whose gate it overrides")
    with storage.lock_folder(job.options.output):
        try:
            return _search(job, gate, command_line(["tune", *argv]))
        except (KeyboardInterrupt, Stopped) as stopped:
            from maep_jobs.search import run

            begun = run.is_there(job.options.output)
            next_step = f"resume with --output {job.options.output} --resume" if begun else "re-run the same command"
            print(f"maep tune: interrupted; {next_step}", file=sys.stderr)
            return 128 + (signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else signal.SIGTERM)


def _resumed(options: argparse.Namespace) -> str:
    """With --resume, the configuration of the search in --output."""
    if not options.resume or options.config:
        return ""
    if options.output is None:
        raise ConfigError("--resume: give the folder of the search, --output DIR")
    from maep_jobs.search import run

    run.check_there(options.output)
    return str(options.output / run.WHOLE)


def _search(job: Job[TuneConfig], gate: PromoteConfig | None, command: str) -> int:
    """Runs the search, reports it, promotes its winner if asked, and returns the exit status."""
    from maep.errors import JobFailed
    from maep.tracking.client import absolute
    from maep.tracking.runs import ui_command
    from maep.tune import results
    from maep.tune.report import report
    from maep_jobs.search import run, winner

    options, settings, output = job.options, job.settings, job.options.output
    tracking = absolute(job.tracking)
    run.run_search(settings, tracking, output, options.resume, options.address)
    result = results.read(output)
    results.write(result)
    page = report.write_report(result, command)[0]
    if not result.count("done"):
        reasons = [trial.reason for trial in result.trials if trial.reason]
        raise JobFailed(f"none of {len(result.trials)} trials trained to the end: {reasons[0]} (report: {page})")
    promoted = None
    if gate is not None:
        trained = run.classifier_folders(settings, output)
        promoted = winner.promote_winner(result, gate, tracking, trained, options.force, command)
    lines = [*_lines(result, page), *(promoted.lines if promoted else ())]
    runs = [f"runs: {ui_command(tracking)}"] if tracking.enabled else []
    job.print_result(_values(result) | {"promoted": promoted and promoted.values}, *lines, *runs)
    return 0 if promoted is None or promoted.verdict.champion else 1


def _lines(result: SearchResult, page: Path) -> list[str]:
    """The result for people."""
    from maep.tune import results

    images = sum(trial.budget.samples_seen for trial in result.trials)
    counts = ", ".join(f"{result.count(status)} {status}" for status in ("done", "stopped", "failed"))
    found = [f"search: {counts}, {images:,} images seen", f"report: {page}"]
    best = result.best
    if best is None:
        return [*found, "best: no trial is within the limits"]
    values = "  ".join(f"{name} {best.objectives[name]:.4g}" for name in result.objectives if name in best.objectives)
    return [*found, f"best: {best.trial_id}  {values}", f"configuration: {result.folder / results.BEST}"]


def _values(result: SearchResult) -> dict[str, object]:
    """The result for programs."""
    best = result.best
    return {
        "output": str(result.folder),
        "trials": {status: result.count(status) for status in ("done", "stopped", "failed")},
        "samples_seen": sum(trial.budget.samples_seen for trial in result.trials),
        "best": best and {"trial_id": best.trial_id, "settings": best.settings, "objectives": best.objectives},
        "front": [trial.trial_id for trial in result.front] if len(result.config.objectives) > 1 else None,
        "purifier": best and best.artifact and str(result.folder / best.artifact),
    }
