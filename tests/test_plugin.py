"""examples/plugin: a package outside the repository adds one of each kind, and the command line uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
EDGES = "import:maep_example.classifier:edges"
FINETUNE = {
    "data": {"name": "stripes"},
    "model": {"name": "filter", "size": 5},
    "classifiers": [EDGES],
    "attacks": {"mixture": [{"name": "momentum", "share": 1}]},
    "loss": {"smoothness": {"weight": 0.1}},
    "loop": {"batch_size": 32, "augment": False, "checkpoint_every": 10**6},
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example installed, as `pip install --target` leaves it; no network."""
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)]
    done = subprocess.run(command, cwd=ROOT / "examples" / "plugin", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    zipfile.ZipFile(next(dist.glob("*.whl"))).extractall(site)
    return site


def maep(installed: Path, folder: Path, *words: str) -> str:
    """Standard output of `maep ...`, run in `folder` where the example is installed."""
    environment = os.environ | {"PYTHONPATH": str(installed), "MAEP_CACHE": str(folder / "cache")}
    line = [sys.executable, "-m", "maep_jobs.cli", *words]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def written(folder: Path, values: dict[str, Any]) -> str:
    """The name of a configuration file with `values`, without tracking."""
    (folder / "config.yaml").write_text(yaml.safe_dump(values | {"tracking": {"enabled": False}}))
    return "config.yaml"


def test_the_plug_ins_data_set_is_shown_and_its_names_are_known(installed: Path, tmp_path: Path) -> None:
    assert [split["images"] for split in json.loads(maep(installed, tmp_path, "data", "show", "stripes", "--json"))]
    plan = maep(installed, tmp_path, "finetune", "--dry-run", "--config", written(tmp_path, FINETUNE))
    assert yaml.safe_load(plan)["loss"]["smoothness"]["weight"] == 0.1
    assert yaml.safe_load(plan)["model"]["size"] == 5


@pytest.mark.parametrize("words", [["finetune", "--help"], ["tune", "--help"], ["finetune", "--lrr", "3"]])
def test_help_and_hints_do_not_import_the_plug_in(installed: Path, words: list[str]) -> None:
    program = f"""
import sys
from maep_jobs import cli
try:
    cli.main({words!r})
except SystemExit:
    pass
print({{"torch", "maep_example.loss"}} & set(sys.modules), file=sys.stderr)
"""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "set()"
    assert ("smoothness" in done.stdout) == ("--help" in words)


@pytest.mark.slow
def test_the_plug_in_trains_evaluates_and_searches(installed: Path, tmp_path: Path) -> None:
    maep(
        installed, tmp_path, "finetune", "--config", written(tmp_path, FINETUNE), "--loop.samples", "256",
        "--output", "trained",
    )  # fmt: skip
    found = json.loads(maep(
        installed, tmp_path, "evaluate", "--purifier", "mine=trained/model", "--data.name", "stripes", "--images",
        "stripes-dev", "--num_images", "16", "--num_probes", "8", "--num_workers", "1",
        "--baselines", "[none, average]", "--classifiers", f"[{EDGES}]", "--output", "evaluated", "--json",
    ))  # fmt: skip
    assert set(found["purifiers"]) == {"none", "average", "mine"}
    search = {
        "finetune": FINETUNE,
        "space": {"noise": {"uniform": [0, 0.1]}},
        "objectives": ["clean_change"],
        "measure": {"num_images": 16, "adaptive": "momentum"},
        "budget": {"amount": 128, "pretrain_share": 0},
        "num_trials": 2,
        "generation": 2,
    }
    maep(installed, tmp_path, "tune", "--config", written(tmp_path, search), "--output", "searched")
    trials = list((tmp_path / "searched" / "trials").glob("*/trial.json"))
    assert len(trials) == 2
    assert all("clean_change" in json.loads(trial.read_text())["objectives"] for trial in trials)
