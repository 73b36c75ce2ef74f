"""One training run, tracked and resumable, in this process or on Ray: `pretrain`, `finetune`, `classifier train`."""

from __future__ import annotations

import functools
import logging
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from maep import artifact, config, storage
from maep.artifact import Artifact
from maep.data.stream.loaders import resolved
from maep.errors import ConfigError, UserError
from maep.models import flops
from maep.tracking.client import TrackingConfig, absolute
from maep.tracking.resolve import resolve
from maep.tracking.runs import open_run, ui_command
from maep.train.benchmark import estimate
from maep.train.checkpoint.mirror import working_folder
from maep.train.checkpoint.store import BEST, MODEL, RUN_KEY, Best
from maep.train.config import ClassifierConfig, FinetuneConfig, PretrainConfig
from maep.train.loop.callback import Callback, TrainingProgress
from maep.train.ray.workers import Settings, train, with_absolute_paths
from maep.train.validation import Validation
from maep_jobs.arguments import Job
from maep_jobs.terminal.progress import Bar

_log = logging.getLogger("maep.train")


def run_training(job: Job[Settings], phase: str) -> Artifact | None:
    """Trains, and prints the location of the artifact; with --dry-run prints the plan and returns None."""
    settings, options = job.settings, job.options
    output: str | Path = options.output
    folder = working_folder(output)
    if options.dry_run:
        lines = plan(settings, output)
        if isinstance(settings, PretrainConfig):
            lines += costs(settings)
        job.print_plan(*lines)
        return None
    address = getattr(options, "address", None)
    if address is not None and settings.workers.most == 0:
        raise ConfigError(f"--address {address}: this run has no Ray workers: set --workers.num_workers to at least 1")
    with storage.lock_folder(folder):
        resume = resolve(options.resume, job.tracking) if getattr(options, "resume", None) else None
        settings = _located(settings, job.tracking)
        where = output if storage.is_remote(output) else Path(output).absolute()
        make = functools.partial(make_callbacks, phase, settings, absolute(job.tracking), where)
        result = train(settings, output, make, address, resume)
    wanted = settings.loop.keep_best
    if wanted is not None and not artifact.is_valid(folder / BEST):
        _log.warning(
            "loop.keep_best: no validation measured %s, so no best checkpoint is kept", wanted.removeprefix("-")
        )
    model = storage.join(output, MODEL)
    runs = [f"runs: {ui_command(job.tracking)}"] if job.tracking.enabled else []
    values = {"model": model, "kind": result.kind, "sha256": result.sha256}
    job.print_result(values, f"{phase}: {model}  sha256 {result.sha256[:12]}", *runs)
    return result


def _located(settings: Settings, tracking: TrackingConfig) -> Settings:
    """`settings` with `init` resolved to a folder and, for workers, absolute paths."""
    if isinstance(settings, PretrainConfig | FinetuneConfig):
        init = settings.init
        if init is not None and not Path(init).exists():
            settings = replace(settings, init=str(resolve(init, tracking).folder))
    return with_absolute_paths(settings) if settings.workers.num_workers else settings


def plan(settings: Settings, output: str | Path) -> list[str]:
    """The plan, as lines."""
    loop, workers = settings.loop, settings.workers
    count = f"{workers.least} to {workers.most}" if workers.most > workers.least else str(workers.most)
    where = f"{count} Ray Train workers" if workers.most else "this process"
    return [
        f"train on {settings.data.name}: {loop.num_steps:,} steps of {loop.batch_size} images in {where}",
        f"loader: {resolved(settings.loader, settings.data, workers.most != 0).kind}",
        f"checkpoint every {loop.checkpoint_every:,} images, the last {loop.keep_checkpoints} kept"
        + (f", and the best by {loop.keep_best}" if loop.keep_best else ""),
        f"result: {storage.join(output, MODEL)}",
    ]


def costs(settings: PretrainConfig) -> list[str]:
    """What pretraining costs: parameters, operations, and time, estimated from two short steps on this machine."""
    model, ratio = settings.model, settings.mask_ratio
    forward, training = (flops.forward(model, ratio) / 1e9, flops.training(model, ratio) / 1e9)
    return [
        f"model: {flops.parameters(model):,} parameters",
        f"an image: {forward:.4g} GFLOP forward, {training:.4g} GFLOP in training",
        _time(settings),
    ]


def _time(settings: PretrainConfig) -> str:
    try:
        rate, how = estimate(settings)
    except ConfigError as error:  # the plan is for another machine, with a GPU or a compiler
        return f"time: unknown, {error}"
    length = timedelta(seconds=round(settings.loop.num_steps * settings.loop.batch_size / rate))
    where = "on one worker like this process" if settings.workers.num_workers else "in this process"
    return f"time: {length} {where} at {rate:,.4g} images/s ({how})"


def make_callbacks(phase: str, settings: Settings, tracking: TrackingConfig, output: str | Path) -> Sequence[Callback]:
    """The callbacks of a run, made in the process where they run, after all checks of the configuration."""
    name, output = f"{phase} {str(output).rpartition('/')[2]}", working_folder(output)
    storage.write_bytes(output / "config.yaml", config.to_yaml(settings).encode())
    shown, tracked = _Shown(name), _Tracked(phase, name, settings, tracking, output)
    if isinstance(settings, ClassifierConfig) or not settings.validation.every_checkpoint:
        return [shown, tracked]

    def report(metrics: Mapping[str, float], samples_seen: int) -> None:
        tracked.measured(metrics, samples_seen)
        shown.measured(metrics, samples_seen)

    metric = settings.loop.keep_best
    kind = "mae" if isinstance(settings, PretrainConfig) else "purifier"
    best = Best(output / BEST, metric, kind) if metric is not None else None
    return [shown, Validation(settings, output, report, best), tracked]  # before `tracked`, which ends the MLflow run


def _run_key(output: Path) -> str:
    """The key by which a resumed training finds its MLflow run; kept in the output, so a new training is a new run."""
    path = output / RUN_KEY
    if not path.is_file():
        storage.write_bytes(path, uuid.uuid4().hex.encode())
    return path.read_text(encoding="ascii")


class _Shown(Callback):
    """Shows progress."""

    def __init__(self, name: str) -> None:
        self._bar = Bar(name)

    def on_step(self, progress: TrainingProgress) -> None:
        self._bar.show(progress.samples_seen, progress.samples, progress.eta_s, progress.headline)

    def on_end(self, result: Artifact) -> None:
        self._bar.close()

    def on_failure(self, error: BaseException) -> None:
        self._bar.close()

    def measured(self, metrics: Mapping[str, float], samples_seen: int) -> None:
        """Metrics of a validation."""
        values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._bar.say(f"{self._bar.name}  validated after {samples_seen:,}  {values}")


class _Tracked(Callback):
    """Writes a run to MLflow: parameters, metrics by samples seen, every kept checkpoint, pictures."""

    def __init__(self, phase: str, name: str, settings: Settings, tracking: TrackingConfig, output: Path) -> None:
        self._settings = settings
        key = _run_key(output) if tracking.enabled else ""
        self._run = open_run(tracking, name, key, config.to_dict(settings), {"maep.phase": phase})

    def on_step(self, progress: TrainingProgress) -> None:
        self._run.log_metrics(progress.metrics, progress.samples_seen)

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        self._keep(saved, samples_seen)

    def on_end(self, result: Artifact) -> None:
        self._keep(result, self._settings.loop.num_steps * self._settings.loop.batch_size)
        self._run.finish()

    def on_failure(self, error: BaseException) -> None:
        self._run.finish("FAILED" if isinstance(error, Exception) else "KILLED")

    def measured(self, metrics: Mapping[str, float], samples_seen: int) -> None:
        """Metrics of a validation."""
        self._run.log_metrics(metrics, samples_seen)

    def _keep(self, saved: Artifact, samples_seen: int) -> None:
        if self._run.run_id is None:
            return
        self._run.log_checkpoint(saved, samples_seen)
        from maep_jobs.strips import reconstruction_strip

        try:
            picture = reconstruction_strip(saved, self._settings.data)
        except UserError as error:  # a missing picture does not stop the training
            _log.warning("no picture of the checkpoint after %d images: %s", samples_seen, error)
            return
        if picture is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "strip.png"
                picture.save(path)
                self._run.log_picture(path, f"reconstruction-{samples_seen:012d}")
