"""`python -m maep.train` on a machine with PyTorch alone: both phases, stopped and resumed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hiding import HIDE
from PIL import Image
from train_toys import LOOP, MAE

from maep import artifact
from maep.artifact import Artifact
from maep.train.__main__ import main

PRESENT = ("torch", "torchvision", "timm", "numpy", "pyarrow", "pillow", "pyyaml", "safetensors")
PROGRAM = f"""
import json, sys
HIDDEN = set(json.loads(sys.argv[1]))
{HIDE}
from maep.train.__main__ import main
statuses = [main(line) for line in json.loads(sys.argv[2])]
assert not HIDDEN & set(sys.modules), HIDDEN & set(sys.modules)
print("statuses", *statuses)
"""


def hidden() -> list[str]:
    """Import names of everything installed that PRESENT does not need."""
    wanted, pending = set(), list(PRESENT)
    while pending:
        name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", pending.pop(), maxsplit=1)[0]).lower()
        if name not in wanted:
            wanted.add(name)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                pending += [each for each in importlib.metadata.requires(name) or () if "extra ==" not in each]
    owners = importlib.metadata.packages_distributions()
    known = {name: {re.sub(r"[-_.]+", "-", owner).lower() for owner in each} for name, each in owners.items()}
    return sorted(name for name, each in known.items() if not each & (wanted | {"maep"}) and name.isidentifier())


@pytest.fixture(scope="module")
def machine(trained_classifier: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A data root with 64 training images and nothing else, both configurations, and the line to run."""
    root = tmp_path_factory.mktemp("machine")
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    encoded = []
    for pixels in images:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        encoded.append(buffer.getvalue())
    columns: dict[str, Any] = {"image": encoded, "label": [k % 10 for k in range(64)], "index": list(range(64))}
    (root / "data" / "cifar10").mkdir(parents=True)
    pq.write_table(pa.table(columns | {"lossless": [True] * 64}), root / "data" / "cifar10" / "train-0-of-1.parquet")
    mae = MAE | {"image_size": 32, "patch_size": 8}
    shared = {"data": {"name": "cifar10", "root": str(root / "data")}, "tracking": {"uri": "http://nowhere:1"}}
    phases: dict[str, dict[str, Any]] = {
        "pretrain": {"model": mae, "mask_ratio": 0.5, "loop": LOOP | {"samples": 256, "checkpoint_every": 64}},
        "finetune": {
            "model": {"name": "purifier", "mae": mae, "stem_channels": [4, 8], "stem_blocks": 1},
            "classifiers": [str(trained_classifier.folder)],
            "loop": LOOP | {"samples": 192, "checkpoint_every": 64},
            "workers": {"num_workers": 4},
        },
    }
    for phase, values in phases.items():
        (root / f"{phase}.yaml").write_text(yaml.safe_dump(shared | values))
    return root, [word for phase in phases for word in (f"--{phase}", str(root / f"{phase}.yaml"))]


@pytest.fixture(scope="module")
def whole(machine: tuple[Path, list[str]]) -> Artifact:
    """Both phases in one go, in this process."""
    root, line = machine
    assert main([*line, "--output", str(root / "whole")]) == 0
    return artifact.read(root / "whole" / "finetune" / "model")


def test_both_phases_run_and_resume_with_torch_alone(machine: tuple[Path, list[str]], whole: Artifact) -> None:
    root, line = machine
    line = [*line, "--output", str(root / "alone")]
    stopped = [*line, "--minutes", "1e-9"]
    command = [sys.executable, "-c", PROGRAM, json.dumps(hidden()), json.dumps([stopped, stopped, line, line])]
    environment = {name: value for name, value in os.environ.items() if name != "MAEP_DATA"}
    assert {"ray", "mlflow", "pydantic", "sklearn", "scipy", "rich", "boto3"} <= set(hidden())
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "statuses 0 0 0 0" in done.stdout
    assert "stopped at 32 images" in done.stdout
    assert "stopped at 64 images" in done.stdout  # a notice costs no step, and each start takes at least one
    assert "pretrain 256/256" in done.stdout
    assert done.stdout.count("finetune 192/192") == 1  # the last line found both phases done
    assert artifact.read(root / "alone" / "finetune" / "model").sha256 == whole.sha256
    assert artifact.read(root / "alone" / "pretrain" / "model").kind == "mae"


def test_the_second_phase_starts_from_the_first(machine: tuple[Path, list[str]], whole: Artifact) -> None:
    first = artifact.read(machine[0] / "whole" / "pretrain" / "model")
    assert whole.config["train"]["init_sha256"] == first.sha256


def test_an_override_belongs_to_its_phase(
    machine: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, line = machine
    words = ["--pretrain.loop.samples", "64", "--finetune.loop.samples=128", "--finetune.noise", "8/255"]
    assert main([*line, "--output", str(tmp_path), *words]) == 0
    assert artifact.read(tmp_path / "pretrain" / "model").config["train"]["loop"]["samples"] == 64
    second = artifact.read(tmp_path / "finetune" / "model").config["train"]
    assert second["loop"]["samples"] == 128
    assert second["noise"] == pytest.approx(8 / 255)
    capsys.readouterr()
    assert root.is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loop.samples", "64"], "unknown key 'loop': overrides are written --pretrain.section.key VALUE"),
        (["--pretrain.loop.sampels", "64"], "unknown key 'loop.sampels': did you mean 'samples'?"),
        (["--finetune.loop.sampels", "64"], "unknown key 'loop.sampels': did you mean 'samples'?"),
        (["--finetune", "nowhere.yaml"], "cannot read configuration 'nowhere.yaml'"),
        (["--pretrain.data.root", "nowhere"], "nowhere"),
        (["--pretrain.mask_ratio", "0"], "mask_ratio: 0.0 hides none or all"),
    ],
)
def test_mistakes_are_usage_errors_before_anything_is_written(
    words: list[str], message: str, machine: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*machine[1], "--output", str(tmp_path / "out"), *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("maep.train: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ignored_validation_is_a_warning(
    machine: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pretrain.validation.every_checkpoint", "true", "--pretrain.loop.keep_best", "-dev_reconstruction"]
    assert main([*machine[1], "--output", str(tmp_path / "out"), *words, "--finetune.loop.sampels", "1"]) == 2
    said = capsys.readouterr().err.splitlines()[0]
    assert "validation.every_checkpoint and loop.keep_best -dev_reconstruction" in said


def test_no_phase_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path)]) == 2
    assert "nothing to do" in capsys.readouterr().err
