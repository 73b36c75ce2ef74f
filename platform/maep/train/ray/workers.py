"""The training loop on Ray Train: N workers share each batch; Ray starts them, and restarts them when one dies.

The steps do not use Ray. Checkpoints are the loop's own, in a folder that all workers share or on s3://; a new group of
workers resumes from the newest one as any other process does. A range of workers is Ray Train's elasticity: the batch
stays the same, so a group of another size takes the same steps, up to the order of sums.

Three kinds of termination notice reach the steps: SIGTERM of this process, which creates a file that rank 0 polls each
second; SIGTERM of a worker; and Ray's, when a machine is drained (a spot machine that is reclaimed), within five
seconds. All workers then finish the current step, or at most one more. The first kind ends the run, the others only the
group: a new group resumes elsewhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from maep import artifact, cluster, storage
from maep.artifact import Artifact
from maep.data.datasets import data_uri
from maep.data.stream.loaders import resolved
from maep.errors import Stopped, UnavailableError, UserError
from maep.storage import s3
from maep.train.build_tasks import pretraining, purification
from maep.train.checkpoint.mirror import Mirror, mirror_of, working_folder
from maep.train.checkpoint.resume import World, first_mistake, starting_point
from maep.train.checkpoint.store import MODEL, RESUMED
from maep.train.classifier import classification
from maep.train.config import ClassifierConfig, FinetuneConfig, PretrainConfig
from maep.train.loop.callback import Callback
from maep.train.loop.run import Task, run_from
from maep.train.loop.step import check_shares
from maep.train.loop.termination import Notice, on_sigterm
from maep.train.ray.faults import cause, fault_callback, of_rank
from maep.train.ray.termination import StopFile, torch_config, worker_notice

Settings = PretrainConfig | FinetuneConfig | ClassifierConfig

MakeCallbacks = Callable[[], Sequence[Callback]]
"""Makes the callbacks in the process where they run (connections cannot be pickled), once the run is accepted."""


def train(
    settings: Settings,
    output: str | Path,
    make_callbacks: MakeCallbacks,
    address: str | None = None,
    resume: Artifact | None = None,
) -> Artifact:
    """Trains a phase in this process (`workers.num_workers` 0) or on that many Ray Train workers.

    For workers, `settings` must be `with_absolute_paths`, and `output` a folder that all machines share, or s3://.
    Returns the result on this machine. Raises UnavailableError where the cluster cannot place the workers or S3 does
    not answer, Stopped after a SIGTERM of this process, and the loop's exceptions.
    """
    workers = settings.workers
    output = str(output if storage.is_remote(output) else Path(output).absolute())
    folder, mirror = working_folder(output), mirror_of(output, settings.loop.keep_checkpoints)
    if workers.most == 0:
        task = _task(settings)
        start = starting_point(task.config, folder, resume, mirror=mirror)  # raises before callbacks write anything
        with on_sigterm() as notice:
            return _to_end(start, task, folder, mirror, make_callbacks, World(), notice)
    for count in range(workers.least, workers.most + 1):
        check_shares(settings.loop, count)
    folder.mkdir(parents=True, exist_ok=True)
    stop = StopFile(output)
    stop.remove()
    with cluster.session(address, logical_cpus(settings)), on_sigterm(stop.put) as notice:
        _check_room(settings)
        try:
            lent = _lent(resume, output, mirror) if resume is not None else None
            while (stopped := _fit(settings, output, make_callbacks, lent)) is not None:
                if notice() or stopped.samples_seen >= settings.loop.last_step * settings.loop.batch_size:
                    raise stopped
        finally:
            with suppress(UnavailableError):  # another error reports that S3 does not answer
                stop.remove()
    if mirror is not None:
        mirror.pull()
    return artifact.read(folder / MODEL)


def _to_end(
    start: Artifact | None,
    task: Task,
    folder: Path,
    mirror: Mirror | None,
    make_callbacks: MakeCallbacks,
    world: World,
    notice: Notice,
) -> Artifact:
    """Runs the training in `folder`; the mirror uploads before other callbacks are called."""
    callbacks = [*([mirror] if mirror else []), *make_callbacks()] if world.rank == 0 else []
    result = run_from(start, task, folder, callbacks, world, notice)
    if mirror is not None and world.rank == 0:
        mirror.finish()
    return result


def _task(settings: Settings) -> Task:
    match settings:
        case PretrainConfig():
            return pretraining(settings)
        case FinetuneConfig():
            return purification(settings)
        case ClassifierConfig():
            return classification(settings)


def with_absolute_paths(settings: Settings) -> Settings:
    """`settings` without relative paths: Ray's workers have another working directory."""
    root = Path(data_uri(settings.data))
    if not root.is_absolute() and root.is_dir():
        settings = replace(settings, data=replace(settings.data, root=str(root.absolute())))
    if isinstance(settings, PretrainConfig | FinetuneConfig) and settings.init is not None:
        settings = replace(settings, init=str(Path(settings.init).absolute()))
    if isinstance(settings, FinetuneConfig):
        classifiers = tuple(
            str(Path(spec).absolute()) if (Path(spec) / artifact.MANIFEST).is_file() else spec
            for spec in settings.classifiers
        )
        settings = replace(settings, classifiers=classifiers)
    return settings


def _check_room(settings: Settings) -> None:
    """Raises UnavailableError for workers that the cluster can never place; Ray itself would wait for ever."""
    workers, have = settings.workers, cluster.resources()
    cpus = workers.cpus_per_worker + _loader_cpus(settings)
    need = {"CPU": workers.least * cpus, "GPU": workers.least * int(workers.use_gpu)}
    for kind, amount in need.items():
        if have.get(kind, 0) < amount:
            raise UnavailableError(
                f"workers.num_workers: {workers.least} need {amount:g} {kind}s, the cluster has"
                f" {have.get(kind, 0):g}: lower it, or workers.cpus_per_worker"
            )


def logical_cpus(settings: Settings) -> float:
    """Ray's logical CPUs of all workers of a run; 0 without workers."""
    workers = settings.workers
    return workers.most * (workers.cpus_per_worker + _loader_cpus(settings)) if workers.most else 0.0


def _loader_cpus(settings: Settings) -> float:
    """Logical CPUs of a worker's loader, beside the worker's own: without them Ray Data starves silently."""
    loader = resolved(settings.loader, settings.data, on_ray=True)
    return loader.cpus if loader.kind == "ray" else 0.0


def _fit(settings: Settings, output: str, make_callbacks: MakeCallbacks, lent: str | None) -> Stopped | None:
    """Trains with workers to the end (None), or until a notice stops them."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    workers = settings.workers
    system, path = s3.arrow(output) if storage.is_remote(output) else (None, output)
    patience = workers.start_timeout_s / (workers.max_failures + 1)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(patience)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "settings": settings,
            "output": output,
            "make_callbacks": make_callbacks,
            "resume": lent,
        },
        torch_config=torch_config(),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            elastic_resize_monitor_interval_s=workers.resize_every_s,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, "GPU": int(workers.use_gpu)},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=path,
            storage_filesystem=system,
            callbacks=[fault_callback(output)],
            failure_config=FailureConfig(
                max_failures=workers.max_failures, controller_failure_limit=workers.max_failures
            ),
        ),
    )
    try:
        ended: Stopped | UserError | FloatingPointError | None = trainer.fit().return_value
    except TrainingFailedError as error:
        raise cause(error, workers.start_timeout_s) from None
    if ended is None or isinstance(ended, Stopped):
        return ended
    raise ended


def _lent(resume: Artifact, output: str, mirror: Mirror | None) -> str:
    """Copies the checkpoint to where all machines can read it; returns its name below `output`."""
    if mirror is not None:
        return mirror.lend(resume)
    name = f"{RESUMED}/{resume.sha256[:16]}"
    if not artifact.is_valid(Path(output) / name):
        shutil.copytree(resume.folder, Path(output) / name, dirs_exist_ok=True)
    return name


def _worker(values: dict[str, Any]) -> UserError | FloatingPointError | Stopped | None:
    """One worker's run. Errors of all workers are returned; an error of one is raised, and Ray ends the others."""
    import ray.train

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    settings: Settings = values["settings"]
    output, resume, mistake = values["output"], None, None
    folder, mirror = working_folder(output), mirror_of(output, settings.loop.keep_checkpoints)
    try:
        task = _task(settings)
        if values["resume"] and world.rank == 0:
            resume = mirror.fetch(values["resume"]) if mirror else artifact.read(folder / values["resume"])
    except UserError as error:
        mistake = error
    mistake = first_mistake(mistake, world)
    if mistake is not None:
        return mistake
    try:
        start = starting_point(task.config, folder, resume, world, mirror)
    except UserError as error:
        return error
    notice = worker_notice(world.rank, StopFile(output))
    try:
        _to_end(start, task, folder, mirror, values["make_callbacks"], world, notice)
    except Stopped as stopped:
        return stopped
    except (UserError, FloatingPointError) as error:
        if world.size > 1:
            raise of_rank(world.rank, error) from None  # the others wait for this worker; only Ray can end them
        return of_rank(world.rank, error)
    return None
