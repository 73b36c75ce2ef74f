"""`maep tune`: search for the best purifier for a budget, and write down what was found."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from maep import storage
from maep.errors import ConfigError, Stopped
from maep.tracking.client import absolute, hide_secrets
from maep.tracking.runs import ui_command
from maep.tune import results
from maep.tune.config import TuneConfig
from maep.tune.record import read_all
from maep.tune.report import report
from maep.tune.results import SearchResult
from maep.tune.search import suggest
from maep.tune.trial.plan import check_length
from maep_jobs.arguments import Job, Parser, parse, parser, plan_text
from maep_jobs.failure import JobFailed
from maep_jobs.search import run, winner
from maep_jobs.search.plan import plan
from maep_jobs.terminal.standard_output import print_json

_EXAMPLES = """  maep tune --config digits/tune --output outputs/search
  maep tune --config digits/tune --dry-run
  maep tune --output outputs/search --resume
  maep tune --config digits/tune --budget.kind flops --budget.amount 2e12 --searcher random
  maep tune --config digits/tune --space '{mask_ratio: {choice: [0.25, 0.75]}}' --searcher grid
  maep tune --output outputs/search --resume --promote"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    made = parser(
        "tune", "Search for the best purifier within a budget per trial; --resume continues after a kill.", _EXAMPLES
    )
    made.add_argument("--resume", action="store_true", help="resume the search in --output")
    made.add_argument("--address", help="Ray cluster to run the trials on (default: this machine)")
    winner.add_options(made)
    job = _parsed(made, argv)
    options, settings = job.options, job.settings
    output: Path = options.output
    suggest.check(settings)
    check_length(settings)
    if options.dry_run:
        print(plan_text(job, plan(settings, output)), end="")
        return 0
    gate = None
    if options.force and options.promote is None:
        raise ConfigError("--force: needs --promote, whose gate it overrides")
    if options.promote is not None:
        gate = winner.gate_settings(options.promote, settings.finetune.data.name, job.tracking)
    command = hide_secrets(shlex.join(["maep", "tune", *argv]))
    tracking = absolute(job.tracking)
    with storage.lock_folder(output):
        try:
            run.run_search(settings, tracking, output, options.resume, options.address)
            result = results.read(output)
            results.write(result)
            page = report.write_report(result, command)[0]
        except (KeyboardInterrupt, Stopped) as stopped:
            print(f"maep tune: stopped; {_left(output)}", file=sys.stderr)
            return 128 + (signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else signal.SIGTERM)
        if not result.count("done"):
            reasons = [trial.reason for trial in result.trials if trial.reason]
            raise JobFailed(f"none of {len(result.trials)} trials trained to the end: {reasons[0]} (report: {page})")
        trained = run.classifier_folders(settings, output)
        promoted = None
        if gate is not None:
            promoted = winner.promote_winner(result, gate, tracking, trained, options.force, command)
    if options.json:
        print_json(_values(result) | {"promoted": promoted and promoted.values})
    else:
        print("\n".join([*_lines(result, page), *(promoted.lines if promoted else ())]))
        if tracking.enabled:
            print(f"runs: {ui_command(tracking)}")
    return 0 if promoted is None or promoted.verdict.champion else 1


def _parsed(made: Parser, argv: Sequence[str]) -> Job[TuneConfig]:
    """The job; with --resume and without --config, the one of the search in --output."""
    options, _ = made.parse_known_args(list(argv))
    if not options.resume or options.config:
        return parse(made, TuneConfig, argv)
    if options.output is None:
        raise ConfigError("--resume: give the folder of the search, --output DIR")
    run.check_there(options.output)
    return parse(made, TuneConfig, argv, default=str(options.output / run.WHOLE))


def _left(output: Path) -> str:
    """What is kept after Ctrl-C, and how to resume."""
    if not run.is_there(output):
        return "nothing was started; run the same command again"
    return f"{len(read_all(output))} finished trials are kept; resume with --output {output} --resume"


def _lines(result: SearchResult, page: Path) -> list[str]:
    """The summary at the end, as text."""
    images = sum(trial.budget.samples_seen for trial in result.trials)
    counts = ", ".join(f"{result.count(status)} {status}" for status in ("done", "stopped", "failed"))
    found = [f"search: {counts}, {images:,} images seen", f"report: {page}"]
    best = result.best
    if best is None:
        return [*found, "best: none, no trial is within the limits"]
    values = "  ".join(f"{name} {best.objectives[name]:.4g}" for name in result.objectives if name in best.objectives)
    return [*found, f"best: {best.trial_id}  {values}", f"configuration: {result.folder / results.BEST}"]


def _values(result: SearchResult) -> dict[str, object]:
    """The summary as JSON."""
    best = result.best
    return {
        "output": str(result.folder),
        "trials": {status: result.count(status) for status in ("done", "stopped", "failed")},
        "samples_seen": sum(trial.budget.samples_seen for trial in result.trials),
        "best": best and {"trial_id": best.trial_id, "settings": best.settings, "objectives": best.objectives},
        "front": [trial.trial_id for trial in result.front] if len(result.config.objectives) > 1 else None,
        "purifier": best and best.artifact and str(result.folder / best.artifact),
    }
