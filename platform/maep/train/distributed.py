"""The same loop on Ray Train: N workers share each batch, Ray starts them and starts them anew when one dies.

Nothing of Ray is in the step. Checkpoints are the loop's own, on storage that all workers see; a new group of
workers resumes from the newest as any other process would.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maep import artifact, cluster, config
from maep.artifact import Artifact
from maep.errors import UnavailableError, UserError
from maep.train.classifier import ClassifierConfig, classification
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop import Callback, Task, World, run
from maep.train.phases import pretraining, purification

Settings = PretrainConfig | FinetuneConfig | ClassifierConfig

MakeCallbacks = Callable[[], Sequence[Callback]]
"""Makes the callbacks in the process where they run: connections do not travel."""


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
        return run(_task(settings), output, make_callbacks(), World(), resume)
    workers = settings.workers
    with cluster.session(address, workers.num_workers * workers.cpus_per_worker):
        _check_room(settings)
        _fit(settings, output.absolute(), make_callbacks, resume)
    return artifact.read(output / "model")


def _task(settings: Settings) -> Task:
    match settings:
        case PretrainConfig():
            return pretraining(settings)
        case FinetuneConfig():
            return purification(settings)
        case ClassifierConfig():
            return classification(settings)


def _check_room(settings: Settings) -> None:
    """Refuses at once what this cluster can never place; Ray itself would wait for ever."""
    workers, have = settings.workers, cluster.resources()
    need = {"CPU": workers.num_workers * workers.cpus_per_worker, "GPU": workers.num_workers * int(workers.use_gpu)}
    for kind, amount in need.items():
        if have.get(kind, 0) < amount:
            raise UnavailableError(
                f"workers.num_workers: {workers.num_workers} need {amount:g} {kind}s, the cluster has"
                f" {have.get(kind, 0):g}: lower it, or workers.cpus_per_worker"
            )


def _fit(settings: Settings, output: Path, make_callbacks: MakeCallbacks, resume: Artifact | None) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    workers = settings.workers
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(workers.start_timeout_s)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "phase": type(settings).__name__,
            "settings": config.to_dict(settings),
            "output": str(output),
            "make_callbacks": make_callbacks,
            "resume": str(resume.folder) if resume else None,
        },
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, "GPU": int(workers.use_gpu)},
        ),
        run_config=RunConfig(
            name="ray", storage_path=str(output), failure_config=FailureConfig(max_failures=workers.max_failures)
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        causes = list(getattr(error, "worker_failures", {}).values())
        mistakes = [cause for cause in causes if isinstance(cause, UserError)]
        raise mistakes[0] if mistakes else error from None


def _worker(values: dict[str, Any]) -> None:
    import ray.train

    kinds: dict[str, type[Settings]] = {
        kind.__name__: kind for kind in (PretrainConfig, FinetuneConfig, ClassifierConfig)
    }
    task = _task(config.build(kinds[values["phase"]], values["settings"]))
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    callbacks = values["make_callbacks"]() if world.rank == 0 else ()
    resume = artifact.read(values["resume"]) if values["resume"] else None
    run(task, Path(values["output"]), callbacks, world, resume)
