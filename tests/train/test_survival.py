"""The driver of a Ray run ends by kill -9 or SIGTERM; re-running the command ends with identical bits."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from kills import kill_and_go_on

from maep import config
from maep.artifact import Artifact
from maep.train.build_tasks import pretraining
from maep.train.config import PretrainConfig
from maep.train.loop.run import run
from maep_jobs.config_files import find

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SAMPLES = 128_000
LINE = ["pretrain", "--config", "digits/pretrain", "--loop.samples", str(SAMPLES), "--loop.batch_size", "64"]
LINE += ["--loop.checkpoint_every", "6400"]
LINE += [word for key in ("width", "decoder_width") for word in (f"--model.{key}", "32")]


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run(
        pretraining(config.load(PretrainConfig, find("digits/pretrain"), LINE[3:])), tmp_path_factory.mktemp("w")
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_driver_resumes_with_the_same_command(number: signal.Signals, unkilled: Artifact, tmp_path: Path) -> None:
    result = kill_and_go_on([*LINE, "--workers.num_workers", "1"], tmp_path / "out", SAMPLES, 31, number)
    assert result.sha256 == unkilled.sha256
