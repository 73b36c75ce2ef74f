"""`maep gpu`: parts that travel, and the printed commands run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from maep import artifact
from maep_jobs import cli

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def packed(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the parts, and what was printed."""
    folder = tmp_path_factory.mktemp("packed")
    program = f"from maep_jobs.cli import main; raise SystemExit(main(['gpu', '--output', {str(folder)!r}]))"
    environment = {**os.environ, "MAEP_DATA": str(shared_data)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_parts_are_small_and_hold_what_training_needs_and_no_more(packed: tuple[Path, str]) -> None:
    parts = sorted(packed[0].glob("*.tar"))
    assert parts
    assert all(part.stat().st_size < 60 * 2**20 for part in parts)
    names = []
    for part in parts:
        with tarfile.open(part) as tar:
            names += tar.getnames()
    assert len(names) == len(set(names))
    assert all(name.startswith("maep-gpu/") and ".." not in name for name in names)
    inside = {name.removeprefix("maep-gpu/") for name in names}
    assert {"pretrain.yaml", "finetune.yaml", "code/maep/train/__main__.py"} <= inside
    assert {f"data/weights/cifar10_resnet{depth}.safetensors" for depth in (20, 44)} <= inside
    images = {name for name in inside if name.endswith(".parquet")}
    assert images
    assert all(Path(name).name.startswith("train") for name in images)  # no dev or test image leaves
    assert not [name for name in inside if name.endswith(".pyc") or "__pycache__" in name]


@pytest.mark.slow
def test_the_printed_commands_run_and_go_on(packed: tuple[Path, str], tmp_path: Path) -> None:
    folder, printed = packed
    for part in folder.glob("*.tar"):
        (tmp_path / part.name).symlink_to(part)
    lines = printed.replace("\\\n", " ").splitlines()
    unpack = next(line for line in lines if line.strip().startswith("for part in"))
    train = next(line for line in lines if "python -m maep.train" in line)
    small = "--pretrain.loop.samples 256 --finetune.loop.samples 256 --pretrain.loop.checkpoint_every 128"
    small += " --finetune.loop.checkpoint_every 128 --pretrain.loop.batch_size 64 --finetune.loop.batch_size 64"
    kept = {name: value for name, value in os.environ.items() if name not in ("MAEP_DATA", "PYTHONPATH")}
    environment = {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def bash(line: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", line], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=280
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    bash(unpack)
    assert "--minutes 8" in train
    first = bash(train.replace("--minutes 8", "--minutes 1e-9") + f" {small}")
    assert "stopped at 64 images, as was asked: the same line goes on from there" in first
    second = bash(f"{train} {small}")
    assert "pretrain 64/256" not in second
    assert "finetune 256/256" in second
    result = artifact.read(tmp_path / "maep-gpu" / "out" / "finetune" / "model")
    assert result.kind == "purifier"


def test_what_comes_back_is_small_files_that_join_again(packed: tuple[Path, str], tmp_path: Path) -> None:
    lines = [line.strip() for line in packed[1].splitlines()]
    split, join = (next(line for line in lines if line.startswith(word)) for word in ("tar cf", "cat "))
    made = np.random.default_rng(0).bytes(40 * 2**20)
    there, here = tmp_path / "maep-gpu", tmp_path / "here"
    (there / "out" / "model").mkdir(parents=True)
    (there / "out" / "model" / "model.safetensors").write_bytes(made)
    subprocess.run(["bash", "-ec", split], cwd=there, check=True, timeout=100)
    here.mkdir()
    for part in there.glob("out.tar.*"):
        assert part.stat().st_size <= 15 * 2**20
        part.rename(here / part.name)
    subprocess.run(["bash", "-ec", join], cwd=here, check=True, timeout=100)
    assert (here / "out" / "model" / "model.safetensors").read_bytes() == made


def test_without_the_data_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAEP_DATA", str(tmp_path))
    assert cli.main(["gpu", "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("maep gpu: ")
    assert err.count("\n") == 1
    assert "set $MAEP_DATA" in err
    assert not (tmp_path / "out").exists()
