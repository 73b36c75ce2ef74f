"""kill -9 of the real command at a step drawn from a printed seed; the same line again ends with the unkilled bits."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from train_toys import weights

from maep import artifact, config
from maep.artifact import Artifact
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.history import read
from maep.train.loop import run
from maep.train.phases import pretraining, purification
from maep_jobs.arguments import find

PRETRAIN = ["--loop.samples", "12800", "--loop.batch_size", "64", "--loop.checkpoint_every", "640"]
SMALL = {"width": "32", "depth": "1", "decoder_width": "32"}
PRETRAIN += [word for key, value in SMALL.items() for word in (f"--model.{key}", value)]
FINETUNE = ["--loop.samples", "3840", "--loop.batch_size", "32", "--loop.checkpoint_every", "320"]
FINETUNE += [word for key, value in SMALL.items() for word in (f"--model.mae.{key}", value)]
FINETUNE += ["--loop.replays", "2", "--loop.augment", "true", "--loss.masked.weight", "0.5"]
DEADLINE_S = 280


def reference(cls: type[Any], name: str, words: list[str], task: Any, output: Path) -> Artifact:
    """The same settings, unkilled, in this process."""
    return run(task(config.load(cls, find(name), words)), output)


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return reference(PretrainConfig, "digits/pretrain", PRETRAIN, pretraining, tmp_path_factory.mktemp("whole"))


def newest(output: Path) -> int:
    """Images seen at the newest checkpoint; 0 where there is none."""
    try:
        return int(json.loads((output / "checkpoints" / "index.json").read_text())[-1])
    except FileNotFoundError:
        return 0


def kill_and_go_on(
    line: list[str], output: Path, samples: int, seed: int, number: signal.Signals = signal.SIGKILL
) -> Artifact:
    """Ends the command once it has a checkpoint at or after a number of images drawn from `seed`, and reruns it."""
    at = random.Random(seed).randrange(1, samples // 2)
    print(f"seed {seed}: {number.name} at the first checkpoint after {at} of {samples} images")
    command = [sys.executable, "-m", "maep_jobs.cli", *line, "--output", str(output), "--tracking.enabled", "false"]
    deadline = time.monotonic() + DEADLINE_S
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            while newest(output) < at:
                assert process.poll() is None, process.communicate()[1].decode()
                assert time.monotonic() < deadline
                time.sleep(0.002)  # between two looks at the index
            process.send_signal(number)
            said = process.communicate(timeout=DEADLINE_S)[1].decode()
        finally:
            process.kill()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number, said
        assert re.search(r"stopped at [\d,]+ images, as was asked: the same line goes on from there\n$", said)
    assert not artifact.is_valid(output / "model")
    assert at <= newest(output) < samples
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    result = artifact.read(output / "model")
    assert json.loads(done.stdout)["sha256"] == result.sha256
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "history.jsonl", "model"]
    check_history(line, output, process.pid, number)
    return result


def check_history(line: list[str], output: Path, pid: int, number: signal.Signals) -> None:
    """The history names the process that ended, and the steps that were done again: none with a notice.

    Without, those since the newest whole checkpoint: at most an interval, and what was done while one was written.
    """
    size, every = (int(line[line.index(f"--loop.{key}") + 1]) for key in ("batch_size", "checkpoint_every"))
    lines = read(output)
    resumed = next(each for each in lines if each["event"] == "resumed")
    print(f"process {pid} ended by {number.name}: goes on at step {resumed['step']}, {resumed['redone']} steps again")
    if number == signal.SIGKILL:
        assert [each["event"] for each in lines] == ["started", "resumed", "finished"]
        assert resumed["lost_pid"] == lines[0]["pid"] == pid
        assert resumed["redone"] < 2 * every // size
    else:
        assert [each["event"] for each in lines] == ["started", "stopped", "resumed", "finished"]
        assert "lost_pid" not in resumed
        assert lines[1]["step"] == resumed["step"]
        assert resumed["redone"] == 0


@pytest.mark.parametrize(
    "seed", [11, pytest.param(12, marks=pytest.mark.slow), pytest.param(13, marks=pytest.mark.slow)]
)
def test_a_killed_pretraining_ends_with_the_same_bits(seed: int, unkilled: Artifact, tmp_path: Path) -> None:
    line = ["pretrain", "--config", "digits/pretrain", *PRETRAIN]
    result = kill_and_go_on(line, tmp_path / "out", 12_800, seed)
    assert weights(result) == weights(unkilled)
    assert result.sha256 == unkilled.sha256


@pytest.mark.slow
@pytest.mark.parametrize("seed", [14, 15])
def test_a_pretraining_with_notice_loses_no_step(seed: int, unkilled: Artifact, tmp_path: Path) -> None:
    line = ["pretrain", "--config", "digits/pretrain", *PRETRAIN]
    result = kill_and_go_on(line, tmp_path / "out", 12_800, seed, signal.SIGTERM)
    assert result.sha256 == unkilled.sha256


@pytest.mark.slow
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_a_killed_finetuning_ends_with_the_same_bits(
    seed: int, trained_classifier: Artifact, unkilled: Artifact, tmp_path: Path
) -> None:
    words = [*FINETUNE, "--classifiers", f"[{trained_classifier.folder}]", "--init", str(unkilled.folder)]
    whole = reference(FinetuneConfig, "digits/finetune", words, purification, tmp_path / "whole")
    result = kill_and_go_on(["finetune", "--config", "digits/finetune", *words], tmp_path / "out", 3_840, seed)
    assert result.sha256 == whole.sha256


def test_training_without_ray_and_tracking_imports_neither() -> None:
    program = (
        "import sys, maep_jobs.pretrain; print(*[m for m in ('ray', 'mlflow', 'scipy', 'boto3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
