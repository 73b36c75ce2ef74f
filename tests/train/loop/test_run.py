from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_toys import Heard, Make, weights

from maep import artifact, config
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.data.stream.plan import Sampling
from maep.data.stream.resident import ResidentLoader
from maep.errors import ArtifactError, ConfigError, Stopped
from maep.models.build import build_model, load_weights
from maep.train.batch import Batch
from maep.train.build_tasks import pretraining, purification
from maep.train.checkpoint.resume import World
from maep.train.config import FinetuneConfig, LoopConfig, PretrainConfig
from maep.train.loop.optimizers import learning_rate
from maep.train.loop.run import Task, batch_of, run
from maep.train.objectives import Losses, Pretraining


def test_pretraining_learns(pretrain: Make, tmp_path: Path) -> None:
    heard = Heard()
    result = run(pretraining(pretrain(samples=6400, lr=5e-3)), tmp_path, [heard])
    losses = [progress.metrics["loss"] for progress in heard.steps]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])
    assert result.kind == "mae"
    assert artifact.is_valid(tmp_path / "model")
    assert result.config["data"]["name"] == "digits"


def test_finetuning_learns(finetune: Make, tmp_path: Path) -> None:
    heard = Heard()
    result = run(purification(finetune(samples=2560, lr=4e-3)), tmp_path, [heard])
    kl = [progress.metrics["kl"] for progress in heard.steps]
    assert np.mean(kl[-10:]) < 0.8 * np.mean(kl[:5])
    assert result.kind == "purifier"


def test_same_seed_gives_identical_bits(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    again = run(pretraining(pretrain()), tmp_path / "again")
    other = run(pretraining(pretrain(seed=1)), tmp_path / "other")
    assert weights(again) == weights(unkilled_pretrain[0])
    assert again.sha256 == unkilled_pretrain[0].sha256
    assert weights(other) != weights(again)


def test_global_random_state_is_neither_used_nor_moved(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    torch.manual_seed(987)
    before = torch.get_rng_state()
    result = run(pretraining(pretrain()), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights(result) == weights(unkilled_pretrain[0])


@pytest.mark.parametrize("phase", ["pretrain", "finetune", "replays"])
def test_stopped_run_resumes_to_identical_bits(phase: str, pretrain: Make, finetune: Make, tmp_path: Path) -> None:
    def task() -> Task:
        if phase == "pretrain":
            return pretraining(pretrain(augment=True))
        return purification(finetune(augment=True, replays=2 if phase == "replays" else 1))

    whole = run(task(), tmp_path / "whole")
    heard = Heard(stop_after_checkpoints=2)
    with pytest.raises(KeyboardInterrupt):
        run(task(), tmp_path / "stopped", [heard])
    assert heard.checkpoints == [96, 192]
    rest = Heard()
    result = run(task(), tmp_path / "stopped", [rest])
    assert rest.steps[0].samples_seen == 224  # it went on, and did not start anew
    assert weights(result) == weights(whole)
    assert result.sha256 == whole.sha256


def test_settings_that_do_not_decide_may_change_on_resume(
    pretrain: Make, unkilled_pretrain: Any, tmp_path: Path
) -> None:
    """Where a run trains and how often it saves change no weight: a stopped run resumes under other settings."""
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain(checkpoint_every=32)), tmp_path, [Heard(stop_after_checkpoints=3, every=32)])
    result = run(pretraining(pretrain(checkpoint_every=64, keep_checkpoints=5, device="auto")), tmp_path)
    assert weights(result) == weights(unkilled_pretrain[0])


def test_replays_update_several_times_on_images_attacked_once(finetune: Make, tmp_path: Path) -> None:
    """Two replays: twice the updates of the optimiser on each batch, one crafting."""
    task = purification(finetune(samples=64, replays=2))
    crafted, seen = [], []
    craft, forward = task.objective.craft, task.objective.forward

    def count_craft(batch: Batch) -> Batch:
        crafted.append(batch.step_key)
        return craft(batch)

    def count_forward(batch: Batch) -> Losses:
        seen.append((batch.step_key, batch.replay))
        return forward(batch)

    task.objective.craft, task.objective.forward = count_craft, count_forward  # type: ignore[method-assign]
    run(task, tmp_path)
    assert len(set(crafted)) == len(crafted) == 2
    assert seen == [(crafted[0], 0), (crafted[0], 1), (crafted[1], 0), (crafted[1], 1)]


def source(batch_size: int = 50, augment: bool = False, rank: int = 0, size: int = 1) -> ResidentLoader:
    sampling = Sampling(batch_size, augment=augment, rank=rank, size=size)
    return ResidentLoader(load(DataConfig("digits"), "train"), sampling, torch.device("cpu"))


def batch(loader: ResidentLoader, step: int) -> Batch:
    return batch_of(loader.part(step), step, LoopConfig(samples=100_000, batch_size=50))


def test_an_epoch_covers_each_image_once_in_an_order_of_its_own() -> None:
    batches = source()
    epochs = []
    for epoch in range(2):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        epochs.append(np.concatenate([batches.positions(step) for step in steps]))
    for order in epochs:
        assert len(order) == len(set(order.tolist())) > len(batches.images) - 50
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("size", [2, 5])
def test_workers_share_a_batch_without_overlap(size: int) -> None:
    whole = source()
    parts = [source(rank=rank, size=size) for rank in range(size)]
    for step in (0, 7, whole.steps_per_epoch, 3 * whole.steps_per_epoch + 1):
        shared = [part.positions(step) for part in parts]
        assert {len(part) for part in shared} == {50 // size}
        assert sorted(np.concatenate(shared).tolist()) == sorted(whole.positions(step).tolist())


def test_worker_draws_the_same_numbers_for_an_image_as_one_process() -> None:
    whole, part = batch(source(augment=True), 3), batch(source(augment=True, rank=1, size=2), 3)
    assert torch.equal(whole.keys[1::2], part.keys)
    assert torch.equal(whole.images[1::2], part.images)
    assert whole.step_key == part.step_key


def test_batch_format() -> None:
    first = batch(source(), 0)
    assert first.images.shape == (50, 3, 16, 16)
    assert first.images.dtype == torch.float32
    assert 0 <= first.images.min() < first.images.max() <= 1
    assert first.labels.dtype == torch.int64
    assert first.progress == 0


def test_draws_differ_by_epoch_and_step() -> None:
    batches = source()
    first, later = batch(batches, 0), batch(batches, batches.steps_per_epoch)
    assert first.step_key != later.step_key
    assert not set(first.keys.tolist()) & set(later.keys.tolist())


@pytest.mark.parametrize("steps", [7, 10, 30, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3])
def test_learning_rate_rises_to_its_peak_and_falls_to_zero(steps: int, warmup: float) -> None:
    loop = LoopConfig(samples=steps, batch_size=1, lr=0.5, warmup=warmup)
    rates = [learning_rate(step / steps, loop) for step in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)  # the peak is a peak, however few steps there are
    rise = math.ceil(warmup * steps)
    assert rates[: rise or 1] == sorted(rates[: rise or 1])
    assert rates[rise:] == sorted(rates[rise:], reverse=True)
    assert max(rates) > 0.4
    assert learning_rate(1.0, loop) == pytest.approx(0, abs=1e-12)


def test_progress_values(unkilled_pretrain: Any) -> None:
    result, heard, _ = unkilled_pretrain
    assert [progress.samples_seen for progress in heard.steps] == list(range(32, 321, 32))
    assert {progress.samples for progress in heard.steps} == {320}
    assert all(progress.metrics["images_per_s"] > 0 for progress in heard.steps)
    assert all(math.isfinite(value) for progress in heard.steps for value in progress.metrics.values())
    assert all(progress.eta_s > 0 for progress in heard.steps[:-1])
    assert heard.steps[-1].eta_s == 0
    phases = {f"{phase}_s" for phase in ("data", "forward", "backward", "optimizer")}
    shown = {"loss", "masked", "lr", "images_per_s", "mfu"}
    assert set(heard.steps[0].metrics) == shown | phases | {"grad_norm", "peak_memory_mib"}
    assert set(heard.steps[0].headline) == shown
    assert heard.checkpoints == [96, 192, 288]
    assert [end.sha256 for end in heard.ends] == [result.sha256]


def test_long_runs_report_about_two_hundred_times(pretrain: Make, tmp_path: Path) -> None:
    heard = Heard()
    run(pretraining(pretrain(samples=1010, batch_size=2, checkpoint_every=10**6)), tmp_path, [heard])
    assert 200 <= len(heard.steps) <= 300
    assert heard.steps[-1].samples_seen == 1010


def test_report_is_the_mean_since_the_previous_one(pretrain: Make, tmp_path: Path) -> None:
    some = Heard()
    task = pretraining(pretrain(samples=800, batch_size=2, checkpoint_every=10**6))  # 400 steps: every second
    losses: list[float] = []
    forward = task.objective.forward

    def record(batch: Batch) -> Losses:
        found: Losses = forward(batch)
        losses.append(float(found.loss.detach()))
        return found

    task.objective.forward = record  # type: ignore[method-assign]
    run(task, tmp_path, [some])
    means = [np.mean(losses[start : start + 2]) for start in range(0, 400, 2)]
    assert [progress.metrics["loss"] for progress in some.steps] == pytest.approx(means, rel=1e-5)


def test_a_finished_output_is_returned_at_once(pretrain: Make, unkilled_pretrain: Any) -> None:
    result, _, output = unkilled_pretrain
    task = pretraining(pretrain())
    task.objective.forward = None  # type: ignore[method-assign, assignment]
    heard = Heard()
    again = run(task, output, [heard])
    assert again.sha256 == result.sha256
    assert not heard.steps
    assert [end.sha256 for end in heard.ends] == [result.sha256]


def test_output_of_another_configuration_is_refused(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    for changes, key in (({"lr": 1e-3}, r"train\.loop\.lr=0\.002"), ({"samples": 640}, r"train\.loop\.samples=320")):
        with pytest.raises(ArtifactError, match=key):
            run(pretraining(pretrain(**changes)), unkilled_pretrain[2])
    with pytest.raises(ArtifactError, match=r"train\.mask_ratio=0\.5.* 0\.75"):
        run(pretraining(pretrain({"mask_ratio": 0.75})), unkilled_pretrain[2])
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain()), tmp_path, [Heard(stop_after_checkpoints=1)])
    with pytest.raises(ArtifactError, match=r"train\.loop\.seed=0.* 5"):
        run(pretraining(pretrain(seed=5)), tmp_path)


def test_a_damaged_result_is_named_and_not_overwritten(pretrain: Make, tmp_path: Path) -> None:
    run(pretraining(pretrain()), tmp_path)
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=str(file)):
        run(pretraining(pretrain()), tmp_path)


@pytest.mark.parametrize("where", ["loss", "craft"])
def test_a_loss_that_is_not_finite_names_the_step(where: str, finetune: Make, tmp_path: Path) -> None:
    task = purification(finetune({"attacks": {"mode": "adaptive", "eps": "8/255"}}))
    calls = []
    craft, forward = task.objective.craft, task.objective.forward

    def broken_forward(batch: Batch) -> Losses:
        calls.append(batch)
        losses: Losses = forward(batch)
        return Losses(losses.loss * math.nan, losses.parts) if len(calls) == 4 else losses

    def broken_craft(batch: Batch) -> Batch:
        if len(calls) == 3:
            with torch.no_grad():
                next(task.objective.model.parameters()).fill_(math.nan)
        return craft(batch)

    task.objective.craft = broken_craft if where == "craft" else craft  # type: ignore[method-assign]
    task.objective.forward = broken_forward  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=r" 3, .*\[\d+, ") as caught:
        run(task, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_impossible_settings_are_refused(pretrain: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 32 .*33"):
        run(pretraining(pretrain()), tmp_path, world=World(0, 33))
    with pytest.raises(ConfigError, match=r"batch_size: 32 .* 3 "):
        run(pretraining(pretrain(parallel="fsdp")), tmp_path, world=World(0, 3))
    with pytest.raises(ConfigError, match="batch_size: 2000"):
        run(pretraining(pretrain(samples=4000, batch_size=2000)), tmp_path)
    with pytest.raises(ConfigError, match=r"image_size: 32x32.*digits.*16x16"):
        pretraining(replace(pretrain(), model=replace(pretrain().model, image_size=(32, 32))))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_refused(pretrain: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loop\.device: cuda"):
        run(pretraining(pretrain(device="cuda")), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loop": {"samples": 10}}, "loop: samples: 10"),
        ({"loop": {"lr": 0}}, "lr: "),
        ({"loop": {"sampels": 10}}, "unknown key 'loop.sampels': did you mean 'samples'?"),
        ({"loop": {"device": "tpu"}}, "loop.device: 'tpu' is not known"),
        ({"mask_ratio": 0.999}, "hides none or all"),
        ({"mask_ratio": 0}, "hides none or all"),
        ({"model": {"patch_size": 5}}, "patch_size: 5 does not divide"),
    ],
)
def test_bad_pretraining_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(PretrainConfig, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "classifiers: name at least one"),
        ({"classifiers": ["a", "b"], "classifier_shares": [1]}, "classifier_shares: give one for each"),
        ({"classifiers": ["a"], "attacks": {"mixture": [{"name": "pgd", "share": 0.5}]}}, "shares must add up to 1"),
        ({"classifiers": ["a"], "attacks": {"mode": "blind"}}, "attacks.mode: 'blind' is not known"),
        (
            {"classifiers": ["a"], "model": {"name": "conv"}, "loss": {"masked": {"weight": 1}}},
            "loss.masked: conv",
        ),
        ({"classifiers": ["a"], "loss": {"kl": {"schedule": [[0.5, 1], [0.2, 0]]}}}, "schedule"),
    ],
)
def test_bad_finetuning_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(FinetuneConfig, values)
    assert message in str(caught.value)


def test_the_result_is_the_model_that_was_trained(unkilled_pretrain: Any) -> None:
    result = unkilled_pretrain[0]
    model = build_model(result.config["model"])
    load_weights(model, result)
    images = load(DataConfig("digits"), "train")
    loss = Pretraining(model, 0.5)(batch(source(), 0)).loss  # type: ignore[arg-type]
    assert 0 < loss < 1
    assert result.config["data"]["fingerprint"] == images.fingerprint


def test_artifact_contains_no_place_or_time(unkilled_pretrain: Any, tmp_path: Path) -> None:
    result, _, output = unkilled_pretrain
    for name in ("config.json", "card.md"):
        assert str(output) not in (result.folder / name).read_text()
    assert not {"device", "checkpoint_every"} & result.config["train"]["loop"].keys()


def test_run_starts_from_a_given_checkpoint(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    kept: list[artifact.Artifact] = []

    class Keep(Heard):
        def on_checkpoint(self, saved: artifact.Artifact, samples_seen: int) -> None:
            kept.append(artifact.download(str(saved.folder), tmp_path / f"kept-{samples_seen}"))

    run(pretraining(pretrain()), tmp_path / "first", [Keep()])
    heard = Heard()
    result = run(pretraining(pretrain()), tmp_path / "second", [heard], resume=kept[1])
    assert heard.steps[0].samples_seen == 224
    assert weights(result) == weights(unkilled_pretrain[0])
    with pytest.raises(ArtifactError, match=r"train\.loop\.seed"):
        run(pretraining(pretrain(seed=3)), tmp_path / "third", resume=kept[0])
    with pytest.raises(ArtifactError, match="mae"):
        run(pretraining(pretrain()), tmp_path / "fourth", resume=result)


def test_only_train_images_reach_training(pretrain: Make, finetune: Make) -> None:
    images = load(DataConfig("digits"), "train")
    held_out = {int(i) for split in ("dev", "test") for i in load(DataConfig("digits"), split).indices}  # type: ignore[arg-type]
    for task in (pretraining(pretrain()), purification(finetune())):
        assert task.images.split == "train"
        assert task.images.fingerprint == images.fingerprint
        assert not held_out & set(task.images.indices.tolist())


def test_paused_run_resumes_to_identical_bits(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    whole = pretrain()
    for pause_at in (64, 200, 200):  # the second pause again: killed before anybody heard of it
        with pytest.raises(Stopped) as stopped:
            run(pretraining(pretrain(pause_at=pause_at)), tmp_path)
        assert stopped.value.samples_seen == pause_at // whole.loop.batch_size * whole.loop.batch_size
    assert run(pretraining(whole), tmp_path).sha256 == unkilled_pretrain[0].sha256
