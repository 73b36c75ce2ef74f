"""A Ray cluster of two machines: one is disconnected, or drained like a spot machine, and returns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import Host, hosts

from maep import artifact, config
from maep.artifact import Artifact
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.models.build import build_model, load_weights
from maep.train.batch import Batch
from maep.train.build_tasks import pretraining
from maep.train.checkpoint.history import read
from maep.train.config import PretrainConfig
from maep.train.loop.run import run
from maep.train.objectives import Pretraining
from maep_jobs.config_files import find

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(1500)]
STEPS_AN_INTERVAL = 100
WORDS = ["--loop.samples", "960000", "--loop.batch_size", "64", "--loop.checkpoint_every", "6400"]
WORDS += [f"--model.{key}={value}" for key, value in {"width": 32, "depth": 1, "decoder_width": 32}.items()]
RANGE = ["--workers.num_workers", "[1, 2]", "--workers.resize_every_s", "5"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same training in this process, without a fault."""
    settings = config.load(PretrainConfig, find("digits/pretrain"), WORDS)
    return run(pretraining(settings), tmp_path_factory.mktemp("whole"))


def final_loss(result: Artifact) -> float:
    """Of the trained model, on the same images and masks for every run."""
    model: Any = build_model(result.config["model"])
    load_weights(model, result)
    images = load(DataConfig("digits"), "train")
    count = 512
    pixels, labels = images.batch(range(count))
    keys = torch.arange(count)
    batch = Batch(pixels, labels, keys=keys, step_key=7, places=keys, size=count, progress=1.0)
    with torch.no_grad():
        return float(Pretraining(model, result.config["train"]["mask_ratio"])(batch).loss)


def wait_for(event: Callable[[], bool], process: subprocess.Popen[str], log: Path, seconds: float = 300) -> None:
    """Until `event`; fails with the end of `log` where the training ends before, or it does not come."""
    deadline = time.monotonic() + seconds
    while not event():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, (read(log.parent / "out"), log.read_text()[-3000:])
        time.sleep(0.2)


def sizes(output: Path) -> list[int]:
    """Numbers of workers of each start in the history."""
    return [line["num_workers"] for line in read(output) if "num_workers" in line]


def alive(head: Host) -> list[str]:
    """Ids of the nodes that Ray considers alive, the second machine's last."""
    program = (
        f"import json, ray; ray.init(address='{head.head}', logging_level='error', log_to_driver=False);"
        "print('nodes', json.dumps({n['NodeManagerAddress']: n['NodeID'] for n in ray.nodes() if n['Alive']}))"
    )
    said = head.run(sys.executable, "-c", program, output=subprocess.PIPE).communicate(timeout=120)[0]
    found = re.search(r"nodes (\{.*\})", said)
    assert found, said
    nodes: dict[str, str] = json.loads(found[1])
    return [node for _, node in sorted(nodes.items())]


@pytest.mark.parametrize("drained", [False, True], ids=["cut", "drained"])
def test_lost_machine_returns(drained: bool, whole: Artifact, tmp_path: Path) -> None:
    """Two workers, then one, then two again: the same batches all the time, so the loss of the run without a fault."""
    output, log = tmp_path / "out", tmp_path / "log"
    with hosts(2) as (head, other), log.open("w") as said:
        head.start(1)
        other.start(1)
        assert len(alive(head)) == 2
        line = [sys.executable, "-m", "maep_jobs.cli", "pretrain", "--config", "digits/pretrain", *WORDS, *RANGE]
        line += ["--address", head.head, "--output", str(output), "--tracking.enabled", "false"]
        process = head.run(*line, output=said.fileno())
        index = output / "checkpoints" / "index.json"
        wait_for(lambda: sizes(output) == [2] and index.exists(), process, log)
        if drained:
            reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed")
            until = ("--deadline-remaining-seconds", "60")
            head.ray("drain-node", "--address", head.head, "--node-id", alive(head)[1], *reason, *until)
        else:
            other.cut()
        wait_for(lambda: sizes(output)[:2] == [2, 1], process, log)
        if not drained:
            assert len(alive(head)) == 1  # the fault has happened
        other.kill()
        other.mend()
        other.start(1)
        wait_for(lambda: sizes(output)[:3] == [2, 1, 2], process, log)
        assert process.wait(900) == 0, log.read_text()[-3000:]
    result = artifact.read(output / "model")
    assert result.config == whole.config
    lines = read(output)
    resumed = [each for each in lines if each["event"] == "resumed"]
    print(*(f"from step {each['step']}: {each['redone']} steps again" for each in resumed), sep="\n")
    if drained:
        assert lines[1]["event"] == "stopped"
        assert resumed[0]["redone"] == 0
    else:
        assert resumed[0]["lost_pid"] in {worker["pid"] for worker in lines[0]["workers"]}
    assert all(each["redone"] < 2 * STEPS_AN_INTERVAL for each in resumed)
    assert final_loss(result) == pytest.approx(final_loss(whole), rel=0.01)
