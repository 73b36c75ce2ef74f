"""Several processes that train together, over gloo: the same steps as one, sharded or not, and they stop together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import LOOP, MAE, Heard, Make
from workers import together

from maep import artifact
from maep.artifact import Artifact
from maep.train.loop import run
from maep.train.phases import pretraining

pytestmark = pytest.mark.slow


def values(**loop: Any) -> dict[str, Any]:
    return {"model": MAE, "mask_ratio": 0.5, "loop": LOOP | loop}


def assert_close(found: Artifact, wanted: Artifact) -> None:
    assert found.config == wanted.config
    mine, theirs = found.weights(), wanted.weights()
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loop", [{}, {"parallel": "fsdp"}, {"micro_batch": 5}, {"parallel": "fsdp", "micro_batch": 5}])
def test_two_workers_learn_what_one_does(loop: dict[str, Any], pretrain: Make, tmp_path: Path) -> None:
    one = run(pretraining(pretrain(ema=0.8)), tmp_path / "one")
    told = together(values(ema=0.8, **loop), tmp_path / "two")
    assert told[0]["sha256"] == told[1]["sha256"]
    assert_close(artifact.read(tmp_path / "two" / "out" / "model"), one)
    steps = told[0]["steps"]
    assert [step["seen"] for step in steps] == list(range(32, 321, 32))
    assert not told[1]["steps"]
    if "parallel" not in loop:
        assert all(0 <= step["communication_s"] < 60 for step in steps)


def test_a_run_goes_on_with_more_workers_and_shares(pretrain: Make, tmp_path: Path) -> None:
    """A checkpoint holds whole tensors: from one worker to two that share the weights."""
    one = run(pretraining(pretrain(ema=0.8)), tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain(ema=0.8)), tmp_path / "two" / "out", [Heard(stop_after_checkpoints=2)])
    told = together(values(ema=0.8, parallel="fsdp"), tmp_path / "two")
    assert told[0]["steps"][0]["seen"] == 224
    assert_close(artifact.read(tmp_path / "two" / "out" / "model"), one)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_loss_of_one_worker_that_is_not_finite_stops_both(parallel: str, tmp_path: Path) -> None:
    told = together(values(parallel=parallel), tmp_path, nan_at=(1, 3))
    assert told[0]["error"] == told[1]["error"]
    assert told[0]["error"].startswith("the loss is nan at step 3, first images [")
    assert not (tmp_path / "out" / "model").exists()
