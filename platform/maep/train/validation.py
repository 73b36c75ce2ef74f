"""Validation during training: another process measures a checkpoint on `dev` images while training continues.

With Ray workers it is a Ray task, placed where the cluster has room; otherwise a process on this machine. Both run
`validate` at a low priority. The split `test` is never read.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from maep import artifact, config, registry, seeding
from maep.artifact import Artifact
from maep.attacks.config import AttackConfig
from maep.data.datasets import data_root, load
from maep.data.image_set import ImageSet, to_float
from maep.evaluate.attacked_sets import dev_images
from maep.evaluate.measure import DefendedModel, measure_set
from maep.models.build import build_model, load_weights
from maep.models.classifiers.load import load_classifier
from maep.models.mae import MaskedAutoencoder
from maep.models.purifier import defend
from maep.train.checkpoint.store import Best, hold
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop.callback import Callback, TrainingProgress

Settings = PretrainConfig | FinetuneConfig
Report = Callable[[Mapping[str, float], int], None]
"""Receives the metrics of a checkpoint and its number of images seen, in the validation's thread."""

_BATCH = 32
_NICENESS = 10  # a tenth of a core where training keeps all cores busy; at 19 it would never end
_log = logging.getLogger("maep.train")


def validate(folder: str | Path, settings: Settings) -> dict[str, float]:
    """Measures the checkpoint or artifact in `folder` on the first `validation.num_images` of `dev`, on the CPU.

    An autoencoder has `dev_reconstruction`, the mean squared error on hidden patches (always the same ones). A
    purifier in front of the first classifier has:

    dev_clean           accuracy on clean images
    dev_oblivious       accuracy on images attacked by PGD on the bare classifier, made once and kept
    dev_reconstruction  mean squared error between those images, purified, and the clean ones
    dev_robust          accuracy under PGD through purifier and classifier (if `validation.adaptive`)
    dev_head_*          clean, fgsm, robust (PGD): accuracy of a robust purifier's head

    Accuracies are measured as in an evaluation (`maep.evaluate.measure`). These metrics follow a training and choose
    among its checkpoints; `maep evaluate` measures the figures to report.

    Raises ArtifactError for a damaged artifact or one of another kind, DataError where the data is missing.
    """
    saved = artifact.read(folder)
    model = load_weights(build_model(saved.config["model"]), saved).eval().requires_grad_(False)
    whole = load(settings.data, "dev")
    images = whole.select(range(min(len(whole), settings.validation.num_images)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.loop.seed)  # for the masks of a randomised purifier
        if isinstance(settings, PretrainConfig):
            assert isinstance(model, MaskedAutoencoder)
            return {"dev_reconstruction": _masked_error(model, images, settings)}
        return _purifier_metrics(model, images, settings)


def _masked_error(model: MaskedAutoencoder, images: ImageSet, settings: PretrainConfig) -> float:
    total = 0.0
    for where in _batches(len(images)):
        pixels, _ = images.batch(where)
        keys = seeding.mix(settings.loop.seed, torch.from_numpy(images.indices[where]))
        with torch.no_grad():
            output = model(pixels, settings.mask_ratio, seeding.uniform(keys, model.positions.shape[1]))
        total += float(output.loss) * len(where)
    return total / len(images)


def _purifier_metrics(purifier: nn.Module, images: ImageSet, settings: FinetuneConfig) -> dict[str, float]:
    validation, seed = settings.validation, settings.loop.seed
    classifier = load_classifier(settings.classifiers[0], data_root(settings.data))
    pgd = AttackConfig("pgd", settings.attacks.eps if validation.eps is None else validation.eps, validation.steps)
    attacked = dev_images(classifier, images, pgd, seed)
    model = defend(classifier, purifier)
    defended = DefendedModel(model, bool(purifier.randomised), validation.eot, validation.draws)
    found = {"dev_reconstruction": _purified_error(purifier, images, attacked)}
    threats = {"dev_clean": None, "dev_oblivious": attacked} | ({"dev_robust": pgd} if validation.adaptive else {})
    for name, threat in threats.items():
        found[name] = float(measure_set(defended, images, threat, seed=seed).mean())
    return found | _head_metrics(purifier, settings.model.name, images, pgd, seed)


def _head_metrics(
    purifier: nn.Module, model_name: str, images: ImageSet, pgd: AttackConfig, seed: int
) -> dict[str, float]:
    """Accuracies of a robust purifier's head; FGSM far above PGD tells of catastrophic overfitting."""
    if not registry.families.declared(model_name).head:
        return {}
    head = DefendedModel(purifier.get_submodule("encoder"))
    threats = {"clean": None, "fgsm": AttackConfig("fgsm", pgd.eps), "robust": pgd}
    return {f"dev_head_{name}": float(measure_set(head, images, threats[name], seed=seed).mean()) for name in threats}


@torch.no_grad()
def _purified_error(purifier: nn.Module, images: ImageSet, attacked: NDArray[np.uint8]) -> float:
    total = 0.0
    for where in _batches(len(images)):
        purified = purifier(to_float(torch.from_numpy(attacked[where])))
        total += float((purified - images.batch(where)[0]).square().mean(dim=(1, 2, 3)).sum())
    return total / len(images)


def _batches(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, _BATCH):
        yield np.arange(start, min(start + _BATCH, count))


class Validation(Callback):
    """A callback that measures checkpoints during training, one at a time, then the newest one waiting.

    A thread waits for the measurement, so that training does not, and logs a failure as a warning. The metrics go to
    `report` and to `best`, which keeps the best checkpoint. At the end of the run it measures the result, within
    `validation.deadline_s`.
    """

    def __init__(self, settings: Settings, output: Path, report: Report, best: Best | None = None) -> None:
        self._settings, self._report, self._best = settings, report, best
        self._folder = output / "validation"
        self._changed = threading.Condition()
        self._waiting: tuple[Artifact, int] | None = None
        self._job: ValidationJob | None = None
        self._closed = self._given_up = self._trained = False
        shutil.rmtree(self._folder, ignore_errors=True)  # left by a killed run
        self._thread = threading.Thread(target=self._work, name="maep-validation", daemon=True)
        self._thread.start()

    def on_step(self, progress: TrainingProgress) -> None:
        """Records that this run trained."""
        self._trained = True

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        """Queues the checkpoint, replacing one that is still waiting."""
        with self._changed:
            self._waiting = (saved, samples_seen)
            self._changed.notify_all()

    def on_end(self, result: Artifact) -> None:
        """Measures the result, unless an earlier run made it, and waits for the metrics."""
        loop = self._settings.loop
        if self._trained:
            self.on_checkpoint(result, loop.num_steps * loop.batch_size)
        self._close(self._settings.validation.deadline_s)

    def on_failure(self, error: BaseException) -> None:
        """Cancels the measurement."""
        self._close(0.0)

    def _close(self, patience: float) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(patience)
        if self._thread.is_alive():
            with self._changed:
                self._given_up, self._waiting = True, None
                if self._job is not None:
                    self._job.cancel()
            if patience:
                _log.warning("validation cancelled: not done after %g s; raise validation.deadline_s", patience)
            self._thread.join(10.0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                if self._waiting is None:
                    return
                (saved, samples_seen), self._waiting = self._waiting, None
            try:
                self._measure(saved, samples_seen)
            except Exception as error:  # never fails the training
                if not self._given_up:
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                    _log.warning("validation of the checkpoint after %d images failed: %s", samples_seen, reason)

    def _measure(self, saved: Artifact, samples_seen: int) -> None:
        folder = self._folder / f"{samples_seen:012d}"
        try:
            held = hold(saved, folder)
            job = _start(folder, self._settings)
            with self._changed:
                self._job = job
                if self._given_up:
                    job.cancel()
            metrics = job.result()
            self._report(metrics, samples_seen)
            if self._best is not None:
                self._best.offer(held, samples_seen, metrics)
        finally:
            with self._changed:
                self._job = None
            shutil.rmtree(folder, ignore_errors=True)


class ValidationJob(Protocol):
    """A validation running in another process."""

    def result(self) -> dict[str, float]:
        """Waits for the metrics, or raises the error of the process."""

    def cancel(self) -> None:
        """Ends the process; `result` then raises."""


def _start(folder: Path, settings: Settings) -> ValidationJob:
    return _RayTask(folder, settings) if settings.workers.num_workers else _Process(folder, settings)


class _Process:
    def __init__(self, folder: Path, settings: Settings) -> None:
        words = [str(folder), type(settings).__name__, json.dumps(config.to_dict(settings))]
        command = [sys.executable, "-m", "maep.train.validation", *words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def result(self) -> dict[str, float]:
        out, err = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(err.strip() or f"the process exited with status {self._process.returncode}")
        metrics: dict[str, float] = json.loads(out.splitlines()[-1])
        return metrics

    def cancel(self) -> None:
        self._process.kill()


class _RayTask:
    def __init__(self, folder: Path, settings: Settings) -> None:
        import ray

        # outside the training workers' placement group, and in a process of its own: its priority cannot be reset
        options = {"num_cpus": settings.validation.num_cpus, "scheduling_strategy": "DEFAULT", "max_calls": 1}
        task = ray.remote(**options, max_retries=0)(_validate_at_low_priority)
        self._reference = task.remote(str(folder), settings)

    def result(self) -> dict[str, float]:
        import ray

        metrics: dict[str, float] = ray.get(self._reference)
        return metrics

    def cancel(self) -> None:
        import ray

        ray.cancel(self._reference, force=True)


def _validate_at_low_priority(folder: str, settings: Settings) -> dict[str, float]:
    """`validate`, on one thread."""
    os.nice(_NICENESS)
    torch.set_num_threads(1)
    return validate(folder, settings)


def main(argv: Sequence[str]) -> int:
    """`python -m maep.train.validation FOLDER PHASE SETTINGS` prints the metrics of `validate` as JSON."""
    folder, phase, settings = argv
    kinds: dict[str, type[Any]] = {kind.__name__: kind for kind in (PretrainConfig, FinetuneConfig)}
    print(json.dumps(_validate_at_low_priority(folder, config.build(kinds[phase], json.loads(settings)))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
