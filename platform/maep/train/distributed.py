"""The same loop on Ray Train: N workers share each batch, Ray starts them and starts them anew when one dies.

Nothing of Ray is in the step. Checkpoints are the loop's own, on storage that all workers see; a new group of
workers resumes from the newest as any other process would. A range of workers is Ray Train's own elasticity: the
batch stays the same, so a group of another size takes the same steps, up to the order of sums.

A notice reaches the steps from four sides: SIGTERM of this process, which leaves a file that rank 0 looks for;
SIGTERM of a worker; Ray's own, of a machine that is drained (a spot machine that is reclaimed). The first ends the
run, the others only the group: a new one goes on elsewhere.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maep import artifact, cluster, config
from maep.artifact import Artifact
from maep.data.datasets import data_uri
from maep.data.loaders import resolved
from maep.errors import ConfigError, Stopped, UnavailableError, UserError, WriteError
from maep.train.classifier import ClassifierConfig, classification
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop import Callback, Task, World, run, starting_point
from maep.train.notice import Notice, on_sigterm
from maep.train.phases import pretraining, purification

Settings = PretrainConfig | FinetuneConfig | ClassifierConfig

_STOP = "stop"
_LOOK_EVERY_S = 1.0
_DRAIN_POLL_S = 5.0

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

    Raises UnavailableError where the cluster cannot place the workers, Stopped after a SIGTERM of this process, and
    what the loop raises.
    """
    workers = settings.workers
    if workers.most == 0:
        task = _task(settings)
        starting_point(task, output, resume)  # refuses before the callbacks write anything
        with on_sigterm() as notice:
            return run(task, output, make_callbacks(), World(), resume, notice)
    for count in range(workers.least, workers.most + 1):
        if settings.loop.batch_size % count:
            raise ConfigError(f"loop.batch_size: {settings.loop.batch_size} does not divide among {count} workers")
    output.mkdir(parents=True, exist_ok=True)
    stop = output.absolute() / _STOP
    stop.unlink(missing_ok=True)
    with cluster.session(address, logical_cpus(settings)), on_sigterm(stop.touch) as told:
        _check_room(settings)
        settings = rooted(settings)
        try:
            while (stopped := _fit(settings, output.absolute(), make_callbacks, resume)) is not None:
                if told() or stopped.samples_seen >= settings.loop.last_step * settings.loop.batch_size:
                    raise stopped
        finally:
            stop.unlink(missing_ok=True)
    return artifact.read(output / "model")


def _task(settings: Settings) -> Task:
    match settings:
        case PretrainConfig():
            return pretraining(settings)
        case FinetuneConfig():
            return purification(settings)
        case ClassifierConfig():
            return classification(settings)


def rooted(settings: Settings) -> Settings:
    """`settings` with what lies below the working directory named from the root: Ray gives workers another one."""
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
    """Refuses at once what this cluster can never place; Ray itself would wait for ever."""
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
    """Ray's logical CPUs that the workers of a run take, all together; 0 where there are none."""
    workers = settings.workers
    return workers.most * (workers.cpus_per_worker + _loader_cpus(settings)) if workers.most else 0.0


def _loader_cpus(settings: Settings) -> float:
    """Logical CPUs that a worker's loader needs beside the worker's own: Ray Data would starve without, and not say."""
    loader = resolved(settings.loader, settings.data, on_ray=True)
    return loader.cpus if loader.kind == "ray" else 0.0


def _fit(settings: Settings, output: Path, make_callbacks: MakeCallbacks, resume: Artifact | None) -> Stopped | None:
    """Trains with workers until the result is there, or a notice has stopped them: then it says so."""
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
        torch_config=_hearing(),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            elastic_resize_monitor_interval_s=workers.resize_every_s,
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
        ended: Stopped | UserError | FloatingPointError | None = trainer.fit().return_value
    except TrainingFailedError as error:
        raise _cause(error, workers.start_timeout_s) from None
    if ended is None or isinstance(ended, Stopped):
        return ended
    raise ended


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


def _hearing() -> Any:
    """Ray's setting-up of PyTorch, and in each worker's main thread an ear for SIGTERM (the run has another thread)."""
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_start(worker_group, backend_config)
            worker_group.execute(_hear_sigterm)

    class Hearing(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return Backend

    return Hearing()


_sigterm = threading.Event()


def _hear_sigterm() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: _sigterm.set())


def _notice(rank: int, stop: Path) -> Notice:
    """Whether this worker was told to end, by SIGTERM, by Ray, or (rank 0 hears it) by the file `stop`."""
    import ray.train
    from ray.exceptions import RayError

    drained = threading.Event()

    def watch() -> None:
        # All workers ask equally often, as Ray wants it: a barrier that the steps do not wait at.
        with suppress(RayError):  # the group ends while this waits for the others
            while ray.train.get_preemption_info() is None:
                time.sleep(_DRAIN_POLL_S)
            drained.set()

    threading.Thread(target=watch, name="maep-notice", daemon=True).start()
    looked = 0.0

    def told() -> bool:
        nonlocal looked
        if _sigterm.is_set() or drained.is_set():
            return True
        if rank or time.monotonic() < looked + _LOOK_EVERY_S:
            return False
        looked = time.monotonic()
        return stop.exists()

    return told


def _worker(values: dict[str, Any]) -> UserError | FloatingPointError | Stopped | None:
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
    notice = _notice(world.rank, output / _STOP)
    try:
        run(task, output, values["make_callbacks"]() if world.rank == 0 else (), world, resume, notice)
    except Stopped as stopped:
        return stopped
    except (UserError, FloatingPointError) as error:
        if world.size > 1:
            raise _of(world.rank, error) from None  # the others wait for this worker, and only Ray can end them
        return error
    return None


def _of(rank: int, error: UserError | FloatingPointError) -> UserError | FloatingPointError:
    """`error` with the worker it happened to: the storage of one machine is not that of another."""
    return type(error)(f"worker {rank}: {error}") if isinstance(error, UnavailableError | WriteError) else error


def _anyones(mistake: UserError | None, world: World) -> UserError | None:
    """The first worker's mistake, if any made one: then all stop, and none waits for another."""
    if world.size == 1:
        return mistake
    mistakes: list[UserError | None] = [None] * world.size
    torch.distributed.all_gather_object(mistakes, mistake)
    return next((each for each in mistakes if each is not None), None)
