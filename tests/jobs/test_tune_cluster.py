"""A search on a Ray cluster of two machines: one that cannot see the output, and one that is disconnected."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import Host, hosts
from train_toys import LOOP, MAE

from maep.tune import record

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def search(classifier: Path, tmp_path: Path) -> Callable[[Host], subprocess.Popen[str]]:
    """Starts the search on the head: four trials of a minute or less, one for each processor at a time."""
    file = tmp_path / "tune.yaml"
    values: dict[str, Any] = {
        "finetune": {
            "model": {"name": "purifier", "mae": MAE, "stem_channels": [4], "stem_blocks": 0},
            "classifiers": [str(classifier)],
            "attacks": {"eps": "32/255", "mixture": [{"name": "fgsm"}]},
            "loop": LOOP | {"checkpoint_every": 3200},
        },
        "space": {"noise": {"uniform": [0, 0.1]}},
        "objectives": ["clean_accuracy"],
        "measure": {"num_images": 16},
        "budget": {"amount": 64000},
        "searcher": "random",
        "num_trials": 4,
    }
    file.write_text(yaml.safe_dump(values))

    def start(head: Host) -> subprocess.Popen[str]:
        words = ["tune", "--config", str(file), "--output", str(tmp_path / "out"), "--address", head.head]
        line = [sys.executable, "-m", "maep_jobs.cli", *words, "--tracking.enabled", "false"]
        return head.run(*line, output=subprocess.PIPE)

    return start


def test_disconnected_machine_costs_no_trial(search: Any, tmp_path: Path) -> None:
    with hosts(2) as (head, other):
        head.start(1)
        other.start(1)
        process = search(head)
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("out/trials/*/checkpoints/index.json"))) < 2:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.2)  # between two looks
        before = len(record.read_all(tmp_path / "out"))
        other.cut()
        said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    assert before < 2
    assert [each.status for each in record.read_all(tmp_path / "out")] == ["done"] * 4
    assert {each.budget.samples_seen for each in record.read_all(tmp_path / "out")} == {64000}


def test_machine_that_cannot_see_the_output_is_named(search: Any, tmp_path: Path) -> None:
    with hosts(2) as (head, other):
        head.start(1)
        other.hidden = tmp_path
        other.start(1)
        process = search(head)
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 2, said
    assert f"machine {other.address} " in said.splitlines()[-1]
    assert not (tmp_path / "out" / record.SEARCH).exists()
