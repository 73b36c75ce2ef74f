"""Running a search: what is refused before it begins, its own classifiers, the trials, and who hears of them."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import yaml

from maep import config, storage
from maep.cluster import check_address
from maep.data.datasets import data_root, load
from maep.errors import ConfigError
from maep.models.classifiers import load_classifier
from maep.tracking.client import TrackingConfig
from maep.train.distributed import train
from maep.train.loop import pick_device
from maep.tune import budget, execute
from maep.tune.config import TuneConfig
from maep.tune.record import SEARCH, Point, TrialRecord
from maep.tune.search import Listener, Search, Work
from maep.tune.trial import Trial
from maep_jobs.training import make_callbacks
from maep_jobs.tune_table import Table
from maep_jobs.tune_tracking import Tracked

WHOLE = "tune.yaml"
"""In the output: what `maep tune --config` takes to make the same search."""
_MAY_CHANGE = ("cpus_per_trial", "gpus_per_trial", "max_failures")
"""What a search may be gone on with other values of: it decides nothing of what is found."""


def run_search(
    settings: TuneConfig, tracking: TrackingConfig, output: Path, resume: bool, address: str | None = None
) -> None:
    """Runs the search in `output` to its end, or goes on with it; a finished one is left as it is.

    Raises UserErrors before a trial begins: for data or classifiers that are not there, a tracking server or cluster
    that does not answer, an output that holds another search.
    """
    _check(settings, address)
    _check_output(settings, output, resume)
    with Tracked(settings, tracking, output) as tracked:
        claim(settings, tracking, output)
        settings = with_classifiers(settings, output)
        with Table(settings) as table:
            search = Search(settings, output, _Both(table, tracked))
            if not search.is_finished:
                execute.on_ray(search, address)


def check_there(output: Path) -> None:
    """Raises ConfigError where `output` holds no search to go on with."""
    if not ((output / SEARCH).is_file() and (output / WHOLE).is_file()):
        raise ConfigError(f"--resume: {output} holds no search: leave it out to begin one")


def classifier_folders(settings: TuneConfig, output: Path) -> dict[str, Path]:
    """The classifiers that the search trains itself, by name."""
    return {each.name: output.absolute() / f"classifier-{each.name}" / "model" for each in settings.classifiers}


def _check(settings: TuneConfig, address: str | None) -> None:
    """Refuses what every trial would fail by."""
    if address is not None:
        check_address(address)
    own = {each.name for each in settings.classifiers}
    for phase in (settings.pretrain, settings.finetune):
        if phase is not None:
            pick_device(phase.loop.device)
            budget.check(settings.budget, phase.loop.device)
    load(settings.finetune.data, "dev")
    for spec in settings.finetune.classifiers:
        if spec not in own:
            load_classifier(spec, data_root(settings.finetune.data))


def _check_output(settings: TuneConfig, output: Path, resume: bool) -> None:
    """Refuses an output that holds another search, or one where there was to be none."""
    path = output / SEARCH
    if not resume:
        if path.is_file():
            raise ConfigError(f"{output} holds a search: go on with it by --resume, or choose another --output")
        return
    check_there(output)
    before, now = config.read_yaml(path), json.loads(json.dumps(config.to_dict(settings)))
    other = [key for key in now if key not in _MAY_CHANGE and before.get(key) != now[key]]
    if other:
        raise ConfigError(
            f"--resume: {output} holds a search of another {other[0]}: leave --config and overrides out, or choose"
            " another --output"
        )


def claim(settings: TuneConfig, tracking: TrackingConfig, output: Path) -> None:
    """Writes down what is searched for, and, for --resume, the whole configuration, for its owner's eyes alone."""
    text = config.to_yaml(settings)
    with_tracking = text + yaml.safe_dump({"tracking": config.to_dict(tracking)}, sort_keys=False)
    storage.write_bytes(output / WHOLE, with_tracking.encode(), mode=0o600)
    storage.write_bytes(output / SEARCH, text.encode())


def with_classifiers(settings: TuneConfig, output: Path) -> TuneConfig:
    """Trains the search's own classifiers, unless they lie there, and names them by their folders."""
    places = classifier_folders(settings, output)
    for each in settings.classifiers:
        folder = places[each.name].parent
        make = functools.partial(make_callbacks, "classifier", each, TrackingConfig(enabled=False), folder)
        train(each, folder, make)
    named = tuple(str(places.get(spec, spec)) for spec in settings.finetune.classifiers)
    return replace(settings, finetune=replace(settings.finetune, classifiers=named))


class _Both:
    """Tells two listeners."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def on_start(self, work: Work) -> None:
        for listener in self._listeners:
            listener.on_start(work)

    def on_point(self, trial: Trial, point: Point) -> None:
        for listener in self._listeners:
            listener.on_point(trial, point)

    def on_end(self, trial: Trial, ended: TrialRecord) -> None:
        for listener in self._listeners:
            listener.on_end(trial, ended)
