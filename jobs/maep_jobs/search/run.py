"""Running a search: what is refused before it begins, its own classifiers, the trials, and who hears of them."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import yaml

from maep import artifact, config, storage
from maep.cluster import check_address
from maep.data.datasets import data_root, load
from maep.errors import ConfigError
from maep.models.classifiers.load import load_classifier
from maep.tracking.client import TrackingConfig, connect
from maep.train.loop.run import pick_device
from maep.train.ray.workers import train
from maep.tune.config import TuneConfig
from maep.tune.record import SEARCH, Point, TrialRecord
from maep.tune.search import execute
from maep.tune.search.rounds import Listener, Search, Work
from maep.tune.trial import budget
from maep.tune.trial.run import Trial
from maep_jobs.search.table import Table
from maep_jobs.search.tracking import Tracked
from maep_jobs.training import make_callbacks

WHOLE = "tune.yaml"
"""In the output: what `maep tune --config` takes to make the same search."""
_MAY_CHANGE = ("cpus_per_trial", "gpus_per_trial", "max_failures")
"""What a search may be gone on with other values of: it decides nothing of what is found."""


def run_search(
    settings: TuneConfig, tracking: TrackingConfig, output: Path, resume: bool, address: str | None = None
) -> None:
    """Runs the search in `output` to its end, or goes on with it; a finished one is left as it is.

    Raises UserErrors before a trial begins: for data or classifiers that are not there, a tracking server or cluster
    that does not answer or has no room, an output that holds another search. `output` then is no search yet.
    """
    _check(settings, address)
    _check_output(settings, output, resume)
    if tracking.enabled:
        connect(tracking)  # before Ray is started, which takes seconds
    named = _named(settings, output)
    room = nullcontext() if Search(named, output).is_finished else execute.room(settings, output, address)
    with room, Tracked(settings, tracking, output) as tracked:
        table = Table(settings)
        search = Search(named, output, _Both(table, tracked))
        if search.is_finished:
            return
        claim(settings, tracking, output)
        _train_classifiers(settings, output)
        with table:  # on a terminal there is one bar or table at a time
            execute.on_ray(search)


def is_there(output: Path) -> bool:
    """Whether `output` holds a search to go on with."""
    return (output / SEARCH).is_file() and (output / WHOLE).is_file()


def check_there(output: Path) -> None:
    """Raises ConfigError where `output` holds no search to go on with."""
    if not is_there(output):
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
            device = pick_device(phase.loop.device).type
            budget.check(settings.budget, device)
            if device == "cuda" and "GPU" not in execute.need(settings):
                raise ConfigError(
                    "gpus_per_trial: 0, and this machine has a GPU: say how much of it a trial takes (0.25: four share"
                    " it), or train on the processors with pretrain.loop.device and finetune.loop.device cpu"
                )
            if phase.init is not None:
                artifact.read(phase.init)
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
    before, now = config.to_dict(config.load(TuneConfig, path)), config.to_dict(settings)
    other = [key for key in now if key not in _MAY_CHANGE and before[key] != now[key]]
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
    _train_classifiers(settings, output)
    return _named(settings, output)


def _train_classifiers(settings: TuneConfig, output: Path) -> None:
    for each in settings.classifiers:
        folder = classifier_folders(settings, output)[each.name].parent
        make = functools.partial(make_callbacks, "classifier", each, TrackingConfig(enabled=False), folder)
        train(each, folder, make)


def _named(settings: TuneConfig, output: Path) -> TuneConfig:
    """`settings` with the search's own classifiers named by their folders, whether they lie there yet or not."""
    places = classifier_folders(settings, output)
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
