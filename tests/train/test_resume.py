"""kill -9 of the real command at a random step (seed printed); re-running it ends with the bits of an unkilled run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from kills import kill_and_go_on
from train_toys import weights

from maep import config
from maep.artifact import Artifact
from maep.train.build_tasks import pretraining, purification
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop.run import run
from maep_jobs.config_files import find

PRETRAIN = ["--loop.samples", "12800", "--loop.batch_size", "64", "--loop.checkpoint_every", "640"]
SMALL = {"width": "32", "depth": "1", "decoder_width": "32"}
PRETRAIN += [word for key, value in SMALL.items() for word in (f"--model.{key}", value)]
FINETUNE = ["--loop.samples", "3840", "--loop.batch_size", "32", "--loop.checkpoint_every", "320"]
FINETUNE += [word for key, value in SMALL.items() for word in (f"--model.mae.{key}", value)]
FINETUNE += ["--loop.replays", "2", "--loop.augment", "true", "--loss.masked.weight", "0.5"]


def reference(cls: type[Any], name: str, words: list[str], task: Any, output: Path) -> Artifact:
    """The same settings, unkilled, in this process."""
    return run(task(config.load(cls, find(name), words)), output)


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return reference(PretrainConfig, "digits/pretrain", PRETRAIN, pretraining, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "seed", [11, pytest.param(12, marks=pytest.mark.slow), pytest.param(13, marks=pytest.mark.slow)]
)
def test_killed_pretraining_resumes_to_identical_bits(seed: int, unkilled: Artifact, tmp_path: Path) -> None:
    line = ["pretrain", "--config", "digits/pretrain", *PRETRAIN]
    result = kill_and_go_on(line, tmp_path / "out", 12_800, seed)
    assert weights(result) == weights(unkilled)
    assert result.sha256 == unkilled.sha256


@pytest.mark.slow
@pytest.mark.parametrize("seed", [14, 15])
def test_pretraining_loses_no_step_after_sigterm(seed: int, unkilled: Artifact, tmp_path: Path) -> None:
    line = ["pretrain", "--config", "digits/pretrain", *PRETRAIN]
    result = kill_and_go_on(line, tmp_path / "out", 12_800, seed, signal.SIGTERM)
    assert result.sha256 == unkilled.sha256


@pytest.mark.slow
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_killed_finetuning_resumes_to_identical_bits(
    seed: int, trained_classifier: Artifact, unkilled: Artifact, tmp_path: Path
) -> None:
    words = [*FINETUNE, "--classifiers", f"[{trained_classifier.folder}]", "--init", str(unkilled.folder)]
    whole = reference(FinetuneConfig, "digits/finetune", words, purification, tmp_path / "whole")
    result = kill_and_go_on(["finetune", "--config", "digits/finetune", *words], tmp_path / "out", 3_840, seed)
    assert result.sha256 == whole.sha256
