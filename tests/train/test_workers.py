"""Several processes over gloo: the same steps as one process, sharded or not, and all stop together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import LOOP, MAE, Heard, Make
from workers import together

from maep import artifact
from maep.artifact import Artifact
from maep.train.build_tasks import pretraining
from maep.train.checkpoint.history import read
from maep.train.checkpoint.store import Checkpoints
from maep.train.loop.run import run

pytestmark = pytest.mark.slow

ALIKE: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "ddp-micro": {"micro_batch": 5},
    "fsdp-micro": {"parallel": "fsdp", "micro_batch": 5},
}
"""Runs that are to learn what one process learns."""
UNEVEN = {"batch_size": 31, "samples": 310, "micro_batch": 5}
"""16 and 15 images, in four and three micro-batches."""


@pytest.fixture(scope="module")
def one(pretrain: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Heard]:
    heard = Heard()
    return run(pretraining(pretrain(ema=0.8)), tmp_path_factory.mktemp("one"), [heard]), heard


@pytest.fixture(scope="module")
def two(pretrain: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """All the runs of two workers, in one pair of processes: the folders of their results, and their output."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain(ema=0.8)), folder / "resumed", [Heard(stop_after_checkpoints=2)])

    def asked(**loop: Any) -> dict[str, Any]:
        return {"values": {"model": MAE, "mask_ratio": 0.5, "loop": LOOP | {"ema": 0.8} | loop}}

    runs = {name: asked(**loop) for name, loop in ALIKE.items()}
    runs["resumed"] = asked(parallel="fsdp")
    runs["uneven"] = asked(**UNEVEN)
    runs |= {f"{parallel}-nan": asked(parallel=parallel) | {"nan_at": [1, 3]} for parallel in ("ddp", "fsdp")}
    runs["told"] = asked() | {"told_at": [1, 4]}
    runs["apart"] = asked() | {"apart": True}
    shutil.copytree(folder / "resumed", folder / "apart-0")
    shutil.copytree(folder / "resumed", folder / "apart-1")
    older = folder / "apart-1" / "checkpoints" / "index.json"  # a disk of its own, which is behind
    older.write_text(json.dumps(json.loads(older.read_text())[:1]))
    return folder, together(runs, folder)


def same_losses(steps: list[dict[str, Any]], wanted: Heard) -> None:
    """The losses of `steps` are the last of those heard, but for rounding, which Adam makes more of step by step."""
    losses = [progress.metrics["loss"] for progress in wanted.steps][-len(steps) :]
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("name", ALIKE)
def test_two_workers_learn_the_same_as_one(name: str, one: Any, two: Any) -> None:
    first, second = two[1][name]
    result = artifact.read(two[0] / name / "model")
    assert first["sha256"] == second["sha256"] == result.sha256
    assert [step["seen"] for step in first["steps"]] == list(range(32, 321, 32))
    assert not second["steps"]
    same_losses(first["steps"], one[1])
    assert result.config == one[0].config
    wanted = one[0].weights()
    assert result.weights().keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(result.weights()[key], tensor, rtol=0.02, atol=4e-3)  # two steps of Adam


def test_uneven_batch_is_learnt_the_same(pretrain: Make, two: Any, tmp_path: Path) -> None:
    heard = Heard()
    run(pretraining(pretrain(ema=0.8, **UNEVEN)), tmp_path, [heard])
    steps = two[1]["uneven"][0]["steps"]
    assert [step["seen"] for step in steps] == list(range(31, 311, 31))
    same_losses(steps, heard)


@pytest.mark.parametrize("name", ["ddp", "ddp-micro"])
def test_waiting_for_other_workers_is_reported(name: str, two: Any) -> None:
    steps = two[1][name][0]["steps"]
    assert all(0 <= step["communication_s"] < 60 and step["backward_s"] >= 0 for step in steps)
    assert any(step["communication_s"] > 0 for step in steps)


def test_run_resumes_with_more_workers_and_shards(one: Any, two: Any) -> None:
    """A checkpoint holds whole tensors: from one worker to two that share the weights."""
    steps = two[1]["resumed"][0]["steps"]
    assert [step["seen"] for step in steps] == list(range(224, 321, 32))
    same_losses(steps, one[1])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_non_finite_loss_of_one_worker_stops_both(parallel: str, two: Any) -> None:
    first, second = two[1][f"{parallel}-nan"]
    assert first["error"] == second["error"]
    assert first["error"].startswith("the loss is nan at step 3, first images [")
    assert not (two[0] / f"{parallel}-nan" / "model").exists()


def test_a_notice_to_one_worker_stops_both_after_the_same_step(two: Any) -> None:
    """After the current step, in which the vote reached the other worker."""
    first, second = two[1]["told"]
    assert first["error"] == second["error"]
    assert first["error"].startswith("stopped at 160 images")
    assert [line["event"] for line in read(two[0] / "told")] == ["started", "stopped"]
    assert Checkpoints(two[0] / "told" / "checkpoints", 2).newest() is not None


def test_all_workers_start_from_the_choice_of_rank_0(two: Any) -> None:
    """The second worker has an older checkpoint of its own, and still resumes from the newest."""
    first, second = two[1]["apart"]
    assert first["steps"][0]["seen"] == 224
    assert "error" not in first | second


def test_history_names_every_worker(two: Any) -> None:
    started = read(two[0] / "told")[0]
    assert started["num_workers"] == len({worker["pid"] for worker in started["workers"]}) == 2
