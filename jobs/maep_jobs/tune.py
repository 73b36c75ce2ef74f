"""`maep tune`: search for the best purifier for a budget."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from maep import config, storage
from maep.errors import ConfigError, UserError
from maep.tracking.client import TrackingConfig, absolute
from maep.tracking.runs import ui_command
from maep.train.distributed import train
from maep.train.loop import pick_device
from maep.tune import budget, execute, record, suggest
from maep.tune.config import TuneConfig
from maep.tune.record import SEARCH, TrialRecord
from maep.tune.search import Listener, Search
from maep_jobs import tune_plan
from maep_jobs.arguments import Job, Parser, parse, parser, plan_text
from maep_jobs.failure import JobFailed
from maep_jobs.training import make_callbacks
from maep_jobs.tune_table import Table
from maep_jobs.tune_tracking import Tracked

_EXAMPLES = """  maep tune --config digits/tune --output outputs/search
  maep tune --config cifar10/tune --dry-run
  maep tune --output outputs/search --resume
  maep tune --config digits/tune --budget.kind flops --budget.amount 2e12 --searcher random
  maep tune --config digits/tune --space.finetune\\.noise '{uniform: [0, 0.2]}'"""

_MAY_CHANGE = ("cpus_per_trial", "gpus_per_trial", "max_failures")
"""Keys that a search may be gone on with other values of: they decide nothing of what it finds."""


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    made = parser("tune", "Search for the best purifier for a budget; --resume goes on after a kill.", _EXAMPLES)
    made.add_argument("--resume", action="store_true", help="go on with the search in --output")
    made.add_argument("--address", help="Ray cluster to run the trials on (default: this machine)")
    job = _parsed(made, argv)
    output: Path = job.options.output
    if job.options.dry_run:
        suggest.check(job.settings)
        print(plan_text(job, tune_plan.lines(job.settings, output)), end="")
        return 0
    with storage.alone_in(output):
        records = run_search(job.settings, job.tracking, output, job.options.resume, job.options.address)
    return _say(job, records)


def run_search(
    settings: TuneConfig, tracking: TrackingConfig, output: Path, resume: bool, address: str | None = None
) -> list[TrialRecord]:
    """Runs the search to its end and returns its trials.

    Raises UserErrors before anything is started: for a space without a setting, data or classifiers that are not
    there, a tracking server or cluster that does not answer, an output that holds another search.
    """
    suggest.check(settings)
    for phase in (settings.pretrain, settings.finetune):
        if phase is not None:
            pick_device(phase.loop.device)
            budget.check(settings.budget, phase.loop.device)
    _claim(settings, output, resume)
    settings = _with_classifiers(settings, output)
    with Tracked(settings, absolute(tracking), output) as tracked, Table(settings) as table:
        search = Search(settings, output, _Both(tracked, table))
        if not search.is_finished:
            execute.on_ray(search, address)
    return record.read_all(output)


def _parsed(made: Parser, argv: Sequence[str]) -> Job[TuneConfig]:
    """The job; with --resume alone, that of the search in --output."""
    options, _ = made.parse_known_args(list(argv))
    kept = options.output / SEARCH if options.output is not None else None
    if not options.resume or options.config:
        return parse(made, TuneConfig, argv)
    if kept is None:
        raise ConfigError("--resume: name the folder of the search, --output DIR")
    if not kept.is_file():
        raise ConfigError(f"--resume: {options.output} holds no search: leave it out to begin one")
    return parse(made, TuneConfig, argv, default=str(kept))


def _claim(settings: TuneConfig, output: Path, resume: bool) -> None:
    """Writes down what is searched. Refuses an output that holds another search, or one to go on with unasked."""
    path = output / SEARCH
    if not path.is_file():
        if resume:
            raise ConfigError(f"--resume: {output} holds no search: leave it out to begin one")
        storage.write_bytes(path, config.to_yaml(settings).encode())
        return
    if not resume:
        raise ConfigError(f"{output} holds a search: go on with it by --resume, or choose another --output")
    before, now = config.read_yaml(path), config.to_dict(settings)
    differing = [key for key in now if key not in _MAY_CHANGE and before.get(key) != json.loads(json.dumps(now[key]))]
    if differing:
        raise ConfigError(
            f"--resume: the search in {output} has another {differing[0]}: leave --config out, or choose another --output"
        )


def _with_classifiers(settings: TuneConfig, output: Path) -> TuneConfig:
    """Trains the search's own classifiers, unless they lie there, and names them by their folders."""
    off = TrackingConfig(enabled=False)
    places: dict[str, str] = {}
    for each in settings.classifiers:
        folder = (output / f"classifier-{each.name}").absolute()
        make = functools.partial(make_callbacks, "classifier", each, off, folder)
        places[each.name] = str(train(each, folder, make).folder)
    named = tuple(places.get(spec, spec) for spec in settings.finetune.classifiers)
    return replace(settings, finetune=replace(settings.finetune, classifiers=named))


class _Both:
    """Tells several listeners."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def __getattr__(self, name: str) -> Any:
        def tell(*args: Any) -> None:
            for listener in self._listeners:
                getattr(listener, name)(*args)

        return tell


def _say(job: Job[TuneConfig], records: Sequence[TrialRecord]) -> int:
    done = [each for each in records if each.status == "done"]
    if not done:
        reasons = [each.reason for each in records if each.reason] or ["there was none"]
        raise JobFailed(f"no trial of {len(records)} was trained to its end: {reasons[0]}")
    best = max(done, key=lambda each: _better(job.settings, each))
    output: Path = job.options.output
    if job.options.json:
        counts = {status: sum(each.status == status for each in records) for status in ("done", "stopped", "failed")}
        images = sum(each.budget.samples_seen for each in records)
        values = {"output": str(output), "trials": counts, "samples_seen": images, "best": _plain(output, best)}
        print(json.dumps(values))
    else:
        found = "  ".join(f"{name} {value:.4g}" for name, value in best.objectives.items())
        print(f"tune: best of {len(records)} trials: {best.trial_id}  {found}")
        print(f"purifier: {output / (best.artifact or '')}")
        if job.tracking.enabled:
            print(f"runs: {ui_command(job.tracking)}")
    return 0
