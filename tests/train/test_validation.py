"""Validation during training: the same values as a direct call, no waiting, and no effect on training if it fails."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import train_toys
from train_toys import Heard, Make, lines

from maep import cluster
from maep.artifact import Artifact
from maep.data import datasets
from maep.errors import ConfigError
from maep.models.build import load_purifier_artifact
from maep.models.classifiers.load import load_classifier
from maep.models.purifier import defend
from maep.train import validation
from maep.train.build_tasks import pretraining, purification
from maep.train.checkpoint.store import Best
from maep.train.config import FinetuneConfig, WorkersConfig
from maep.train.loop.callback import TrainingProgress
from maep.train.loop.run import run
from maep.train.ray.workers import train
from maep.train.validation import Validation, validate

ON = {"every_checkpoint": True, "num_images": 40, "steps": 3}


@dataclass
class Measured:
    """The metrics that validation reported, and how many images the training had seen by then."""

    heard: Heard
    found: list[tuple[dict[str, float], int, int]] = field(default_factory=list)

    def report(self, metrics: Mapping[str, float], samples_seen: int) -> None:
        self.found.append((dict(metrics), samples_seen, self.heard.steps[-1].samples_seen))


class StopOnceMeasured(Heard):
    """Takes the steps to image `until`, then ends the run, as Ctrl-C does, once something was measured of it."""

    def __init__(self, until: int) -> None:
        super().__init__()
        self.until, self.heard = until, threading.Event()

    def on_step(self, progress: TrainingProgress) -> None:
        super().on_step(progress)
        if progress.samples_seen == self.until:
            assert self.heard.wait(240)
            raise KeyboardInterrupt


def test_an_autoencoder_is_measured_on_dev(pretrain: Make, unkilled_pretrain: Any) -> None:
    settings, saved = pretrain({"validation": ON}), unkilled_pretrain[0]
    found = validate(saved.folder, settings)
    assert found.keys() == {"dev_reconstruction"}
    assert 0 < found["dev_reconstruction"] < 1
    assert validate(saved.folder, settings) == found
    more = validate(saved.folder, pretrain({"validation": ON | {"num_images": 300}}))
    assert more["dev_reconstruction"] != found["dev_reconstruction"]


def test_purifier_is_measured_on_dev_only(finetune: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = finetune({"validation": ON | {"num_images": 300}}, samples=960)
    result = run(purification(settings), tmp_path)
    asked = []
    monkeypatch.setattr(validation, "load", lambda data, split: asked.append(split) or datasets.load(data, split))
    found = validate(result.folder, settings)
    assert asked == ["dev"]
    assert found.keys() == {"dev_clean", "dev_oblivious", "dev_robust", "dev_reconstruction"}
    defended = defend(load_classifier(settings.classifiers[0]), load_purifier_artifact(result))
    images, labels = datasets.load(settings.data, "dev").batch(range(300))
    with torch.no_grad():
        assert found["dev_clean"] == pytest.approx(float((defended(images).argmax(1) == labels).double().mean()))
    assert found["dev_robust"] <= found["dev_oblivious"] <= found["dev_clean"]
    assert validate(result.folder, settings) == found  # the second time from the kept images
    easier = replace(settings.validation, eps=0.0, adaptive=False)
    unattacked = validate(result.folder, replace(settings, validation=easier))
    assert unattacked.keys() == {"dev_clean", "dev_oblivious", "dev_reconstruction"}
    assert unattacked["dev_oblivious"] == unattacked["dev_clean"] == found["dev_clean"]


def test_training_continues_during_validation_and_values_match_a_direct_call(finetune: Make, tmp_path: Path) -> None:
    settings = finetune({"validation": ON}, samples=6400, checkpoint_every=1280)
    heard = StopOnceMeasured(until=2240)
    measured = Measured(heard)

    def report(metrics: Mapping[str, float], samples_seen: int) -> None:
        measured.report(metrics, samples_seen)
        heard.heard.set()

    beside = Validation(settings, tmp_path, report)
    with pytest.raises(KeyboardInterrupt):
        run(purification(settings), tmp_path, [heard, beside])
    ((metrics, samples_seen, by_then),) = measured.found
    assert (samples_seen, by_then) == (1280, 2240)  # thirty steps were taken between its start and its end
    assert metrics == validate(tmp_path / "checkpoints" / f"{samples_seen:012d}", settings)
    assert not (tmp_path / "validation").exists()
    assert not beside._thread.is_alive()


@pytest.mark.slow
def test_the_result_is_measured_at_the_end_and_the_best_is_kept(pretrain: Make, tmp_path: Path) -> None:
    settings = pretrain({"validation": ON}, keep_best="-dev_reconstruction")
    heard = Heard()
    measured = Measured(heard)
    best = Best(tmp_path / "best", "-dev_reconstruction", "mae")
    result = run(pretraining(settings), tmp_path, [heard, Validation(settings, tmp_path, measured.report, best)])
    assert [seen for _, seen, _ in measured.found][-1] == 320
    assert measured.found[-1][0] == validate(result.folder, settings)
    score = best.score()
    assert score is not None
    assert score.value == min(metrics["dev_reconstruction"] for metrics, _, _ in measured.found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "history.jsonl", "model"]
    again = Validation(settings, tmp_path, measured.report)
    run(pretraining(settings), tmp_path, [again])  # finished already: nothing is measured anew
    assert [seen for _, seen, _ in measured.found].count(320) == 1


@pytest.mark.slow
def test_failed_validation_does_not_affect_training(
    finetune: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = finetune({"validation": ON})
    whole = run(purification(settings), tmp_path / "whole")
    missing = replace(settings, classifiers=(str(tmp_path / "nowhere"),))
    heard = Heard()
    measured = Measured(heard)
    with caplog.at_level(logging.WARNING, logger="maep.train"):
        beside = Validation(missing, tmp_path / "beside", measured.report)
        assert run(purification(settings), tmp_path / "beside", [heard, beside]).sha256 == whole.sha256
    assert not measured.found
    assert "320" in caplog.text
    assert "nowhere" in caplog.text


class Held:
    """A job that ends on request."""

    def __init__(self) -> None:
        self.ended, self.cancelled = threading.Event(), False

    def result(self) -> dict[str, float]:
        assert self.ended.wait(60)
        if self.cancelled:
            raise RuntimeError("cancelled")
        return {"dev_reconstruction": 0.5}

    def cancel(self) -> None:
        self.cancelled = True
        self.ended.set()


class Jobs:
    """The jobs that were sent, in order, none of which ends by itself."""

    def __init__(self) -> None:
        self.sent: list[Held] = []
        self.changed = threading.Condition()

    def send(self, folder: Path, settings: Any) -> Held:
        with self.changed:
            self.sent.append(Held())
            self.changed.notify_all()
            return self.sent[-1]

    def number(self, count: int) -> Held:
        """The job of that number, once it was sent."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.sent) >= count, 60)
        return self.sent[count - 1]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """In the place of other processes."""
    made = Jobs()
    monkeypatch.setattr(validation, "_start", made.send)
    return made


def test_newer_checkpoint_replaces_a_waiting_one(
    pretrain: Make, unkilled_pretrain: Any, jobs: Jobs, tmp_path: Path
) -> None:
    saved: Artifact = unkilled_pretrain[0]
    reported: list[int] = []
    beside = Validation(pretrain({"validation": ON}), tmp_path, lambda metrics, seen: reported.append(seen))
    beside.on_checkpoint(saved, 100)
    first = jobs.number(1)
    for seen in (200, 300, 400):
        beside.on_checkpoint(saved, seen)
    first.ended.set()
    jobs.number(2).ended.set()
    beside.on_end(saved)  # no step was heard of: the result lay there before
    assert reported == [100, 400]


def test_slow_validation_is_cancelled_at_the_deadline(
    pretrain: Make, unkilled_pretrain: Any, jobs: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = pretrain({"validation": ON | {"deadline_s": 0.01}})
    beside = Validation(settings, tmp_path, lambda metrics, seen: pytest.fail("nothing was measured"))
    beside.on_checkpoint(unkilled_pretrain[0], 100)
    job = jobs.number(1)
    beside.on_end(unkilled_pretrain[0])
    assert job.cancelled
    assert "validation.deadline_s" in caplog.text
    assert not (tmp_path / "validation").exists()


def test_keep_best_needs_a_measured_metric(pretrain: Make, finetune: Make) -> None:
    with pytest.raises(ConfigError, match="-dev_reconstruction"):
        pretrain(keep_best="-dev_reconstruction")
    with pytest.raises(ConfigError, match="dev_clean"):
        pretrain({"validation": ON}, keep_best="dev_clean")
    with pytest.raises(ConfigError, match="dev_robust"):
        finetune({"validation": ON | {"adaptive": False}}, keep_best="dev_robust")
    assert isinstance(finetune({"validation": ON}, keep_best="dev_robust"), FinetuneConfig)


@pytest.mark.slow
def test_ray_task_measures_the_same_values(pretrain: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(train_toys.__file__).parent), prepend=":")
    settings = replace(pretrain({"validation": ON}), workers=WorkersConfig(num_workers=1))
    make = functools.partial(train_toys.validated, settings, tmp_path / "out", tmp_path / "log")
    with cluster.session(None, 1):
        result = train(settings, tmp_path / "out", make)
    last = lines(tmp_path / "log")[-1]
    assert last["seen"] == 320
    assert last["metrics"] == validate(result.folder, settings)
