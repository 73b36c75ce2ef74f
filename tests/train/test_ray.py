"""The loop on Ray Train: identical weights, workers that die, and user errors raised to the caller."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import train_toys
from train_toys import LOOP, Heard, Make, lines, weights, written

from maep import artifact, cluster, config
from maep.artifact import Artifact
from maep.errors import ArtifactError, ConfigError, UnavailableError
from maep.train.checkpoint import history
from maep.train.config import WorkersConfig
from maep.train.ray.workers import train, with_absolute_paths
from maep_jobs import cli


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A local cluster of two logical CPUs for all tests here, whose workers can import what makes the callbacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(train_toys.__file__).parent), prepend=os.pathsep)
        with cluster.session(None, 2):
            yield


def on_ray(settings: Any, num_workers: int, **changes: Any) -> Any:
    return replace(settings, workers=WorkersConfig(num_workers=num_workers, **changes))


@pytest.fixture(scope="module")
def whole(pretrain: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[dict[str, Any]]]:
    """The run that the workers repeat, in this process: its result and what it reported."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(pretrain(samples=640), folder / "out", functools.partial(written, folder / "log"))
    return result, lines(folder / "log")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_one_worker_gives_identical_bits(pretrain: Make, whole: Any, tmp_path: Path) -> None:
    settings = on_ray(pretrain(samples=640), 1)
    result = train(settings, tmp_path / "out", functools.partial(written, tmp_path / "log"))
    assert weights(result) == weights(whole[0])
    assert result.sha256 == whole[0].sha256
    reported = lines(tmp_path / "log")
    assert [line["loss"] for line in reported] == [line["loss"] for line in whole[1]]
    assert {line["pid"] for line in reported} != {os.getpid()}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_two_workers_take_the_same_steps(pretrain: Make, whole: Any, tmp_path: Path) -> None:
    settings = on_ray(pretrain(samples=640), 2)
    result = train(settings, tmp_path / "out", functools.partial(written, tmp_path / "log"))
    assert artifact.is_valid(result.folder)
    assert result.config == whole[0].config
    ours, theirs = lines(tmp_path / "log"), whole[1]
    assert [line["seen"] for line in ours] == [line["seen"] for line in theirs]
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert train(settings, tmp_path / "out", list).sha256 == result.sha256  # finished: returned as it is


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_killed_worker_is_replaced_with_identical_bits(pretrain: Make, whole: Any, tmp_path: Path) -> None:
    settings = on_ray(pretrain(samples=640, checkpoint_every=96), 1)
    result = train(settings, tmp_path / "out", functools.partial(written, tmp_path / "log", kill_at=288))
    assert (tmp_path / "log.died").exists()
    assert weights(result) == weights(whole[0])
    reported = lines(tmp_path / "log")
    first, second = dict.fromkeys(line["pid"] for line in reported)
    lost = [line["seen"] for line in reported if line["pid"] == first][-1]
    assert next(line["seen"] for line in reported if line["pid"] == second) == 320
    assert not (tmp_path / "out" / "checkpoints").exists()
    started, resumed, finished = history.read(tmp_path / "out")
    assert (started["event"], resumed["event"], finished["event"]) == ("started", "resumed", "finished")
    assert (started["pid"], resumed["lost_pid"], resumed["pid"]) == (first, first, second)
    assert resumed["step"] == 9
    print(f"worker {first} killed: {resumed['redone']} steps again")
    assert (lost - 288) // 32 <= resumed["redone"] <= 3  # one interval at most


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_workers_stop_at_the_same_step_after_a_notice_and_new_ones_resume(
    pretrain: Make, whole: Any, tmp_path: Path
) -> None:
    """SIGTERM to the process of rank 0: both workers finish the next step, save a checkpoint; a new group resumes."""
    settings = on_ray(pretrain(samples=640, checkpoint_every=10**6), 2)
    result = train(settings, tmp_path / "out", functools.partial(written, tmp_path / "log", term_at=96))
    assert result.config == whole[0].config
    seen = [line["seen"] for line in lines(tmp_path / "log")]
    assert seen == [line["seen"] for line in whole[1]]  # no step was done twice
    _, stopped, resumed, finished = history.read(tmp_path / "out")
    assert (stopped["event"], stopped["step"], resumed["step"], resumed["redone"]) == ("stopped", 4, 4, 0)
    assert finished["event"] == "finished"
    assert lines(tmp_path / "log")[-1]["loss"] == pytest.approx(whole[1][-1]["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_elastic_workers_use_what_the_cluster_has(pretrain: Make, whole: Any, tmp_path: Path) -> None:
    settings = replace(pretrain(samples=640), workers=WorkersConfig(num_workers=(1, 2)))
    train(settings, tmp_path / "out", functools.partial(written, tmp_path / "log"))
    assert [line["num_workers"] for line in history.read(tmp_path / "out") if "num_workers" in line] == [2]
    for mine, other in zip(lines(tmp_path / "log"), whole[1], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)


@pytest.mark.parametrize("number", [(0, 2), (3, 2), -1])
def test_invalid_worker_range_is_refused(number: Any) -> None:
    with pytest.raises(ConfigError, match="num_workers"):
        config.build(WorkersConfig, {"num_workers": number}, "workers")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_user_error_in_a_worker_is_raised_without_retries(pretrain: Make, finetune: Make, tmp_path: Path) -> None:
    missing = on_ray(finetune({"init": str(tmp_path / "nowhere")}), 2)
    with pytest.raises(ArtifactError, match=r"nowhere.*MANIFEST\.json"):
        train(missing, tmp_path / "a", list)
    with pytest.raises(ConfigError, match="what was given is wrong at 64"):
        train(on_ray(pretrain(), 1), tmp_path / "b", functools.partial(written, tmp_path / "log", fail_at=64))
    assert len(lines(tmp_path / "log")) == 2  # two steps, and no second attempt
    assert not (tmp_path / "b" / "model").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_user_error_in_one_of_two_workers_is_raised(pretrain: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="what was given is wrong at 64"):
        train(on_ray(pretrain(), 2), tmp_path / "out", functools.partial(written, tmp_path / "log", fail_at=64))
    assert len(lines(tmp_path / "log")) == 2  # no second attempt, though three are allowed


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_killed_worker_is_named(pretrain: Make, whole: Any, tmp_path: Path) -> None:
    settings = on_ray(pretrain(samples=640, checkpoint_every=96), 2)
    result = train(settings, tmp_path / "out", functools.partial(written, tmp_path / "log", kill_other_at=224))
    assert result.config == whole[0].config
    found = history.read(tmp_path / "out")
    started = found[0]
    resumed = next(line for line in found if line["event"] == "resumed")
    assert resumed["lost_rank"] == 1
    assert resumed["lost_pid"] == started["workers"][1]["pid"] != started["pid"]
    assert resumed["redone"] <= 6


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_paths_below_the_working_directory_reach_the_workers(
    finetune: Make, trained_classifier: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained_classifier.folder.parent)
    settings = finetune({"classifiers": [trained_classifier.folder.name]}, samples=64)
    here = train(settings, tmp_path / "here", list)
    there = train(with_absolute_paths(on_ray(settings, 1)), Path(os.path.relpath(tmp_path / "there")), list)
    assert there.sha256 == here.sha256


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_too_many_workers_fail_immediately(pretrain: Make, tmp_path: Path) -> None:
    import ray

    have = int(ray.cluster_resources()["CPU"])
    with pytest.raises(UnavailableError, match=rf"num_workers: 16 .*{have}"):
        train(on_ray(pretrain(), 16), tmp_path, list)
    with pytest.raises(UnavailableError, match=r"1 GPUs.* 0"):
        train(on_ray(pretrain(), 1, use_gpu=True), tmp_path, list)


def dead_address() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize("address", ["dead", "127.0.0.1:notaport", "ray://127.0.0.1:1", "nosuchhost.invalid:6379"])
def test_dead_address_is_a_usage_error(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = dead_address() if address == "dead" else address
    line = ["pretrain", "--config", "digits/pretrain", "--output", str(tmp_path), "--tracking.enabled", "false"]
    assert cli.main([*line, "--workers.num_workers", "1", "--address", address]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"maep pretrain: no Ray cluster answers at {address} (")
    assert err.endswith("start one (ray start --head), or leave out --address\n")
    assert err.count("\n") == 1


def test_a_batch_too_small_for_the_workers_is_refused_before_ray_starts(pretrain: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 32 .*33"):
        train(on_ray(pretrain(), 33), tmp_path, list)
    with pytest.raises(ConfigError, match=r"batch_size: 32 .* 3 "):
        train(replace(pretrain(parallel="fsdp"), workers=WorkersConfig(num_workers=(1, 4))), tmp_path, list)


def test_values_that_are_no_paths_stay_unchanged(
    finetune: Make, trained_classifier: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAEP_DATA", "here")
    (tmp_path / "here").mkdir()
    specs = ["cifar10_resnet20", "import:a.b:c", "timm:resnet18"]
    found = with_absolute_paths(finetune({"classifiers": specs, "init": "outputs/mae/model"}))
    assert list(found.classifiers) == specs  # type: ignore[union-attr]
    assert found.init == str(tmp_path / "outputs/mae/model")  # type: ignore[union-attr]
    assert found.data.root == str(tmp_path / "here")
    assert with_absolute_paths(finetune()) != found
    assert LOOP["device"] == "cpu"


def test_without_workers_callbacks_are_made_in_this_process(pretrain: Make, whole: Any, tmp_path: Path) -> None:
    heard = Heard()
    result = train(pretrain(samples=640), tmp_path, lambda: [heard])
    assert result.sha256 == whole[0].sha256
    assert len(heard.steps) == 20
