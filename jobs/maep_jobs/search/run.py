"""Runs a search: checks first, then its own classifiers, then the trials."""

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
from maep.tune.record import SEARCH
from maep.tune.search import execute
from maep.tune.search.rounds import Search
from maep.tune.trial import budget
from maep_jobs.search.progress import SearchProgress
from maep_jobs.search.tracking import SearchTracker
from maep_jobs.training import make_callbacks

WHOLE = "tune.yaml"
"""In the output: the configuration that `maep tune --config` takes to repeat the search."""


def run_search(
    settings: TuneConfig, tracking: TrackingConfig, output: Path, resume: bool, address: str | None = None
) -> None:
    """Starts or resumes the search in `output` and runs it to its end.

    Raises a UserError before any trial starts for missing data or classifiers, a tracking server or cluster that does
    not answer or has no room, and an output that holds another search. `output` is then unchanged.
    """
    _check(settings, address)
    _check_output(settings, output, resume)
    if tracking.enabled:
        connect(tracking)  # before Ray starts, which takes seconds
    named = _named(settings, output)
    room = nullcontext() if Search(named, output).is_finished else execute.room(settings, output, address)
    with room, SearchTracker(settings, tracking, output) as tracked:
        search = Search(named, output, (SearchProgress(settings), tracked))
        if search.is_finished:
            return
        claim(settings, tracking, output)
        train_classifiers(settings, output)
        execute.on_ray(search)


def is_there(output: Path) -> bool:
    """Whether `output` holds a search to resume."""
    return (output / SEARCH).is_file() and (output / WHOLE).is_file()


def check_there(output: Path) -> None:
    """Raises ConfigError where `output` holds no search to resume."""
    if not is_there(output):
        raise ConfigError(f"--resume: {output} holds no search: leave --resume out to start one")


def classifier_folders(settings: TuneConfig, output: Path) -> dict[str, Path]:
    """The folders of the classifiers that the search trains itself, by name."""
    return {each.name: output.absolute() / f"classifier-{each.name}" / "model" for each in settings.classifiers}


def _check(settings: TuneConfig, address: str | None) -> None:
    """Raises a UserError for what would fail in every trial."""
    if address is not None:
        check_address(address)
    own = {each.name for each in settings.classifiers}
    for phase in (settings.pretrain, settings.finetune):
        if phase is not None:
            device = pick_device(phase.loop.device).type
            budget.check(settings.budget, device)
            if device == "cuda" and "GPU" not in execute.need(settings):
                raise ConfigError(
                    "gpus_per_trial: 0, but this machine has a GPU: set the share that a trial takes (0.25: four trials"
                    " share it), or train on the CPU with pretrain.loop.device and finetune.loop.device cpu"
                )
            if phase.init is not None:
                artifact.read(phase.init)
    load(settings.finetune.data, "dev")
    for spec in settings.finetune.classifiers:
        if spec not in own:
            load_classifier(spec, data_root(settings.finetune.data))


def _check_output(settings: TuneConfig, output: Path, resume: bool) -> None:
    """Raises ConfigError for an output that holds another search, or any search without --resume."""
    path = output / SEARCH
    if not resume:
        if path.is_file():
            raise ConfigError(f"{output} holds a search: resume it with --resume, or choose another --output")
        return
    check_there(output)
    before, now = (config.flatten(config.deciding(each)) for each in (config.load(TuneConfig, path), settings))
    other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if other:
        raise ConfigError(
            f"--resume: the search in {output} has another {other[0]}: leave out --config and overrides, or choose"
            " another --output"
        )


def claim(settings: TuneConfig, tracking: TrackingConfig, output: Path) -> None:
    """Writes the configuration of the search; the one with tracking, for --resume, is readable only by its owner."""
    text = config.to_yaml(settings)
    with_tracking = text + yaml.safe_dump({"tracking": config.to_dict(tracking)}, sort_keys=False)
    storage.write_bytes(output / WHOLE, with_tracking.encode(), mode=0o600)
    storage.write_bytes(output / SEARCH, text.encode())


def train_classifiers(settings: TuneConfig, output: Path) -> TuneConfig:
    """Trains the search's own classifiers, unless they are there, and returns `settings` with their folders."""
    for each in settings.classifiers:
        folder = classifier_folders(settings, output)[each.name].parent
        make = functools.partial(make_callbacks, "classifier", each, TrackingConfig(enabled=False), folder)
        train(each, folder, make)
    return _named(settings, output)


def _named(settings: TuneConfig, output: Path) -> TuneConfig:
    """`settings` with the search's own classifiers by folder, whether or not they are trained yet."""
    places = classifier_folders(settings, output)
    named = tuple(str(places.get(spec, spec)) for spec in settings.finetune.classifiers)
    return replace(settings, finetune=replace(settings.finetune, classifiers=named))
