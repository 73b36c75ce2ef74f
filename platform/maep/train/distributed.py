"""The same loop on Ray Train: N workers share each batch, Ray starts them and starts them anew when one dies.

Nothing of Ray is in the step. Checkpoints are the loop's own, on storage that all workers see; a new group of
workers resumes from the newest as any other process would.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maep import artifact, cluster, config
from maep.artifact import Artifact
from maep.data.datasets import data_uri
from maep.data.loaders import resolved
from maep.errors import ConfigError, UnavailableError, UserError
from maep.train.classifier import ClassifierConfig, classification
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop import Callback, Task, World, run, starting_point
from maep.train.phases import pretraining, purification

Settings = PretrainConfig | FinetuneConfig | ClassifierConfig

MakeCallbacks = Callable[[], Sequence[Callback]]
"""Makes the callbacks in the process where they run (connections do not travel), once nothing refuses the run."""


def train(
    settings: Settings,
    output: Path,
    make_callbacks: MakeCallbacks,
    address: str | None = None,
    resume: Artifact | None = None,
) -> Artifact:
    """Trains a phase in this process (`workers.num_workers` 0) or on that many Ray Train workers.

    Raises UnavailableError where the cluster cannot place the workers, and what the loop raises.
    """
    if settings.workers.num_workers == 0:
        task = _task(settings)
        starting_point(task, output, resume)  # refuses before the callbacks write anything
        return run(task, output, make_callbacks(), World(), resume)
    workers = settings.workers
    if settings.loop.batch_size % workers.num_workers:
        raise ConfigError(
            f"loop.batch_size: {settings.loop.batch_size} does not divide among {workers.num_workers} workers"
        )
    with cluster.session(address, workers.num_workers * (workers.cpus_per_worker + _loader_cpus(settings))):
        _check_room(settings)
        _fit(_rooted(settings), output.absolute(), make_callbacks, resume)
    return artifact.read(output / "model")


def _task(settings: Settings) -> Task:
    match settings:
        case PretrainConfig():
            return pretraining(settings)
        case FinetuneConfig():
            return purification(settings)
        case ClassifierConfig():
            return classification(settings)


def _rooted(settings: Settings) -> Settings:
    """`settings` with what lies below the working directory named from the root: Ray gives workers another one."""
    root = Path(data_uri(settings.data))
    if not root.is_absolute() and root.is_dir():
        settings = replace(settings, data=replace(settings.data, root=str(root.absolute())))
    if isinstance(settings, FinetuneConfig):
        init = str(Path(settings.init).absolute()) if settings.init is not None else None
        classifiers = tuple(
            str(Path(spec).absolute()) if (Path(spec) / artifact.MANIFEST).is_file() else spec
            for spec in settings.classifiers
        )
        settings = replace(settings, init=init, classifiers=classifiers)
    return settings


def _check_room(settings: Settings) -> None:
    """Refuses at once what this cluster can never place; Ray itself would wait for ever."""
    workers, have = settings.workers, cluster.resources()
    cpus = workers.cpus_per_worker + _loader_cpus(settings)
    need = {"CPU": workers.num_workers * cpus, "GPU": workers.num_workers * int(workers.use_gpu)}
    for kind, amount in need.items():
        if have.get(kind, 0) < amount:
            raise UnavailableError(
                f"workers.num_workers: {workers.num_workers} need {amount:g} {kind}s, the cluster has"
                f" {have.get(kind, 0):g}: lower it, or workers.cpus_per_worker"
            )


def _loader_cpus(settings: Settings) -> float:
    """Logical CPUs that a worker's loader needs beside the worker's own: Ray Data would starve without, and not say."""
    loader = resolved(settings.loader, settings.data, on_ray=True)
    return loader.cpus if loader.kind == "ray" else 0.0


def _fit(settings: Settings, output: Path, make_callbacks: MakeCallbacks, resume: Artifact | None) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    workers = settings.workers
    patience = workers.start_timeout_s / (workers.max_failures + 1)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(patience)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "phase": type(settings).__name__,
            "settings": config.to_dict(settings),
            "output": str(output),
            "make_callbacks": make_callbacks,
            "resume": str(_shared(resume, output)) if resume else None,
        },
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, "GPU": int(workers.use_gpu)},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(output),
            failure_config=FailureConfig(
                max_failures=workers.max_failures, controller_failure_limit=workers.max_failures
            ),
        ),
    )
    try:
        mistake = trainer.fit().return_value
    except TrainingFailedError as error:
        raise _cause(error, workers.start_timeout_s) from None
    if mistake is not None:
        raise mistake


def _shared(resume: Artifact, output: Path) -> Path:
    """A copy of the checkpoint beside the run's own: workers on other machines see `output`, not the driver's disk."""
    folder = output / "resumed-from" / resume.sha256[:16]
    if not artifact.is_valid(folder):
        shutil.copytree(resume.folder, folder, dirs_exist_ok=True)
    return folder


def _cause(error: Exception, patience: float) -> Exception:
    """What a person has to know of Ray's `error`: the worker's own where it is ours, else Ray's."""
    for cause in getattr(error, "worker_failures", {}).values():
        if isinstance(cause, UserError | FloatingPointError):
            return cause
    if type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError":
        return UnavailableError(
            f"the cluster did not place the workers within {patience:g} s: wait until it is free,"
            " raise workers.start_timeout_s, or lower workers.num_workers"
        )
    return error


def _worker(values: dict[str, Any]) -> UserError | FloatingPointError | None:
    """One worker's run. A mistake that a restart would repeat is returned, because Ray retries what is raised."""
    import ray.train

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    kinds: dict[str, type[Settings]] = {
        kind.__name__: kind for kind in (PretrainConfig, FinetuneConfig, ClassifierConfig)
    }
    output, mistake = Path(values["output"]), None
    resume = None
    try:
        task = _task(config.build(kinds[values["phase"]], values["settings"]))
        resume = artifact.read(values["resume"]) if values["resume"] else None
        starting_point(task, output, resume)
    except UserError as error:
        mistake = error
    mistake = _anyones(mistake, world)
    if mistake is not None:
        return mistake
    try:
        run(task, output, values["make_callbacks"]() if world.rank == 0 else (), world, resume)
    except (UserError, FloatingPointError) as error:
        if world.size > 1:
            raise  # the others wait for this worker, and only Ray can end them
        return error
    return None


def _anyones(mistake: UserError | None, world: World) -> UserError | None:
    """The first worker's mistake, if any made one: then all stop, and none waits for another."""
    if world.size == 1:
        return mistake
    mistakes: list[UserError | None] = [None] * world.size
    torch.distributed.all_gather_object(mistakes, mistake)
    return next((each for each in mistakes if each is not None), None)
