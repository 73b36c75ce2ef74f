"""Pipeline stages: their folders, their termination, and (slow) the whole pipeline on a few digits."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from gates import SMALL_GATE
from processes import children, is_running
from stack import free_ports
from train_toys import MAE

from maep import artifact, config
from maep.errors import ConfigError, JobFailed
from maep.tracking.client import TrackingConfig
from maep_jobs.pipeline import stages as pipeline
from maep_jobs.pipeline.config import PipelineConfig
from maep_jobs.pipeline.stages import Stage, stages

LOOP = {"samples": 320, "batch_size": 32, "augment": False, "device": "cpu"}
VALUES: dict[str, Any] = {
    "classifiers": [{"name": "seen", "depth": 8, "width": 4, "loop": LOOP | {"samples": 3200, "lr": 1e-2}}],
    "pretrain": {"model": MAE, "mask_ratio": 0.5, "loop": LOOP},
    "finetune": {
        "model": {"name": "purifier", "mae": MAE, "stem_channels": [4, 8], "stem_blocks": 1},
        "classifiers": ["seen"],
        "attacks": {"eps": "32/255"},
        "loop": LOOP,
    },
    "evaluate": {
        "data": {"name": "digits"},
        "images": "digits-test",
        "num_images": 20,
        "num_probes": 8,
        "baselines": ["none"],
        "classifiers": ["seen"],
        "eps": ["8/255"],
        "oblivious_eps": "32/255",
    },
    "gate": SMALL_GATE,
    "serve": {"model": "models:/purifier@champion", "classifier": "seen", "data": {"name": "digits"}},
}


def folders(changes: dict[str, Any] | None = None) -> dict[str, str]:
    """Folder names by stage of the tiny pipeline, with dotted keys changed."""
    words = [word for key, value in (changes or {}).items() for word in (f"--{key}", str(value))]
    settings = config.build(PipelineConfig, config.apply_overrides(VALUES, words))
    return {stage.name: stage.folder.name for stage in stages(settings, Path("out"))}


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({}, set()),
        ({"finetune.noise": 0.01}, {"finetune"}),
        ({"finetune.loop.samples": 640}, {"finetune"}),
        ({"pretrain.loop.lr": 0.1}, {"pretrain", "finetune"}),
        ({"pretrain.loop.checkpoint_every": 50}, set()),
        ({"pretrain.loop.device": "auto", "finetune.loop.keep_checkpoints": 5}, set()),
        ({"pretrain.data.root": "elsewhere", "finetune.workers.num_workers": 2}, set()),
        ({"evaluate.num_images": 30, "gate.clean_floor": 0.5, "serve.port": 9000, "parallel": 1}, set()),
    ],
)
def test_a_stage_gets_a_new_folder_exactly_if_its_result_changes(changes: dict[str, Any], moved: set[str]) -> None:
    before, after = folders(), folders(changes)
    assert {name for name in before if before[name] != after[name]} == moved


def test_changed_data_gives_new_folders_and_a_moved_root_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content counts, not paths: moving a data root or a checkout repeats no stage."""
    values = {**VALUES, "classifiers": []}
    for part in ("pretrain", "finetune"):
        model = {**MAE, "image_size": 32, "patch_size": 8}
        values[part] = {**VALUES[part], "data": {"name": "cifar10"}}
        values[part]["model"] = model if part == "pretrain" else {**VALUES[part]["model"], "mae": model}
    values["finetune"]["classifiers"] = ["cifar10_resnet20"]

    def names(root: Path, output: Path) -> dict[str, str]:
        monkeypatch.setenv("MAEP_DATA", str(root))
        return {stage.name: stage.folder.name for stage in stages(config.build(PipelineConfig, values), output)}

    for root in ("here", "there", "other", "retrained"):
        (tmp_path / root / "cifar10").mkdir(parents=True)
        (tmp_path / root / "weights").mkdir()
        (tmp_path / root / "cifar10" / "train.parquet").write_bytes(b"images" if root != "other" else b"other images")
        weights = tmp_path / root / "weights" / "cifar10_resnet20.safetensors"
        weights.write_bytes(b"old" if root != "retrained" else b"new")
    here = names(tmp_path / "here", tmp_path / "a")
    assert names(tmp_path / "there", tmp_path / "b") == here
    assert not set(names(tmp_path / "other", tmp_path / "a").values()) & set(here.values())
    retrained = names(tmp_path / "retrained", tmp_path / "a")
    assert retrained["pretrain"] == here["pretrain"]
    assert retrained["finetune"] != here["finetune"]


def test_a_changed_classifier_gives_new_folders_to_stages_that_attack_it() -> None:
    changed = {**VALUES, "classifiers": [VALUES["classifiers"][0] | {"depth": 14}]}
    names = {each.name: each.folder.name for each in stages(config.build(PipelineConfig, changed), Path("out"))}
    assert {name for name, folder in folders().items() if folder != names[name]} == {"classifier-seen", "finetune"}


def test_stages_wait_for_what_they_need() -> None:
    settings = config.build(PipelineConfig, VALUES | {"conv": VALUES["finetune"] | {"model": {"name": "conv"}}})
    after = {stage.name: set(stage.after) for stage in stages(settings, Path("out"))}
    assert after == {
        "classifier-seen": set(),
        "pretrain": set(),
        "finetune": {"classifier-seen", "pretrain"},
        "conv": {"classifier-seen"},
    }
    finetune = next(stage for stage in stages(settings, Path("out")) if stage.name == "finetune")
    assert isinstance(finetune.settings, pipeline.FinetuneConfig)
    assert finetune.settings.classifiers == (f"out/{folders()['classifier-seen']}/model",)
    assert finetune.settings.init == f"out/{folders()['pretrain']}/model"


def one(name: str, verb: tuple[str, ...], folder: Path, after: tuple[str, ...] = ()) -> Stage:
    """A stage of any verb."""
    return Stage(name, verb, config.build(PipelineConfig, VALUES).pretrain, folder / name, after)


def test_a_stage_that_fails_ends_the_others_and_names_itself(tmp_path: Path, capfd: Any) -> None:
    """A stage with an unknown verb fails at once, while another one still trains."""
    long = one("long", ("pretrain",), tmp_path)
    assert isinstance(long.settings, pipeline.PretrainConfig)
    loop = replace(long.settings.loop, samples=10**8)
    training = [
        replace(long, settings=replace(long.settings, loop=loop)),
        one("broken", ("nonexistent",), tmp_path),
        one("later", ("pretrain",), tmp_path, after=("broken",)),
    ]
    before = set(children(os.getpid()))  # such as the resource tracker that another test's processes brought
    with pytest.raises(ConfigError, match="stage broken"):
        pipeline._train(training, TrackingConfig(enabled=False), parallel=2)
    said = capfd.readouterr().err
    assert "maep: unknown verb 'nonexistent'" in said
    assert "later: " not in said
    assert set(children(os.getpid())) <= before
    assert not list(tmp_path.rglob("MANIFEST.json"))


def test_a_crashed_stage_is_a_failure_not_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(JobFailed, match="stage only"):
        pipeline._train([one("only", ("pretrain",), tmp_path)], TrackingConfig(enabled=False), parallel=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The tiny pipeline as a user's file, on a port of its own."""
    values = VALUES | {"serve": VALUES["serve"] | {"port": free_ports(1)[0]}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(file: Path, *more: str) -> subprocess.Popen[str]:
    """`maep run` as a separate process."""
    line = [sys.executable, "-m", "maep_jobs.cli", "run", str(file), "--output", "out", *more]
    return subprocess.Popen(line, cwd=file.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def its_stages(running: subprocess.Popen[str]) -> list[int]:
    """The processes of its stages, once there are some."""
    assert running.stderr is not None
    assert any(": maep " in line for line in running.stderr)
    deadline = time.monotonic() + 60
    while not (started := children(running.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started
    return started


@pytest.mark.slow
def test_sigterm_leaves_no_process(file: Path, store: Path) -> None:
    running = start(file)
    started = its_stages(running)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert not [child for child in started if is_running(child)]


@pytest.mark.slow
def test_kill_9_leaves_no_stage_running(file: Path, store: Path) -> None:
    """After kill -9 the kernel must end the stages; otherwise a rerun would train beside them."""
    running = start(file)
    started = its_stages(running)
    running.kill()
    running.wait(timeout=60)
    deadline = time.monotonic() + 60
    for pipe in (running.stdout, running.stderr):
        assert pipe is not None
        pipe.close()
    while any(map(is_running, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in started if is_running(child)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pipeline_ends_with_a_checked_endpoint_and_reuses_finished_stages(
    file: Path, store: Path, everything: Callable[[], set[str]]
) -> None:
    first = start(file, "--json")
    out, err = first.communicate(timeout=600)
    assert first.returncode == 0, err
    outcome = json.loads(out)
    assert (outcome["version"], outcome["champion"]) == (1, True)
    folder = file.parent / "out"
    names = folders_at(folder)
    champion = artifact.read(folder / names["finetune"] / "model")
    assert outcome["endpoint"]["sha256"] == champion.sha256
    assert outcome["endpoint"]["identical"]
    assert (folder / "purified.png").read_bytes().startswith(b"\x89PNG")
    assert "| maep |" in (folder / "table.md").read_text()

    made = everything()
    second = start(file, "--json")
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, err
    for name in ("classifier-seen", "pretrain", "finetune", "evaluate"):
        assert f"{name}: already done" in err
    assert json.loads(out)["endpoint"] == outcome["endpoint"]
    assert {path for path in everything() - made if "mlflow" not in path} == set()

    made = everything()
    refusing = ("--tracking.model", "another", "--gate.clean_floor", "1", "--gate.over_baselines", "[none]")
    refused = start(file, "--json", *refusing)
    out, err = refused.communicate(timeout=600)
    assert refused.returncode == 1, err
    assert (json.loads(out)["champion"], json.loads(out)["result"]) == (False, None)
    assert "serve: start" not in err  # test images are not for choosing
    assert not [path for path in everything() - made if "evaluate-" in path]

    third = start(file, "--finetune.noise", "0.01", "--dry-run")
    plan, _ = third.communicate(timeout=120)
    assert "# pretrain: done" in plan
    assert "# classifier-seen: done" in plan
    assert "# finetune: to do" in plan


def folders_at(output: Path) -> dict[str, str]:
    """Stage folders on disk, by name."""
    return {path.name.rpartition("-")[0]: path.name for path in output.iterdir() if path.is_dir()}


def test_a_stage_gets_its_share_of_the_cores_and_writes_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bars on one terminal would overwrite each other."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$OMP_NUM_THREADS $TERM" > "$(dirname "$0")/seen"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    pipeline._train([one("only", ("pretrain",), tmp_path)], TrackingConfig(enabled=False), parallel=2)
    threads = max(1, (os.cpu_count() or 1) // 2)
    assert (tmp_path / "seen").read_text() == f"{threads} dumb\n"
    written = yaml.safe_load((tmp_path / "only" / "stage.yaml").read_text())
    assert written.pop("tracking") == dataclasses.asdict(TrackingConfig(enabled=False))
    assert config.build(PipelineConfig, {"pretrain": written}).pretrain == one("x", (), tmp_path).settings
