"""One update: micro-batches, precision, the optimiser, the average, schedules, and non-finite values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_toys import LOOP, MAE, Heard, Make, batch_at, weights

from maep import config
from maep.errors import ConfigError
from maep.models.conv import ConvPurifier
from maep.models.families.conv import ConvConfig
from maep.train.batch import Batch
from maep.train.build_tasks import pretraining, purification
from maep.train.config import LoopConfig, PretrainConfig
from maep.train.loop.meter import Stopwatch
from maep.train.loop.optimizers import learning_rate, make_optimizer
from maep.train.loop.run import Task, run
from maep.train.loop.step import TrainingStep, compile_blocks, micro_batches, pick_dtype
from maep.train.loop.weight_average import MovingAverage
from maep.train.objectives import Losses

CPU = torch.device("cpu")


def gradient(task: Task, micro_batch: int | None, rank: int = 0, size: int = 1) -> tuple[list[Tensor], Losses]:
    """Of the first step: by what the update's optimiser would be given, which is a step of plain descent here.

    Of a worker of several it is what the worker has before the exchange.
    """
    loop = replace(task.loop, micro_batch=micro_batch, clip=None)
    update = TrainingStep(task.objective, loop, size, CPU)
    before = [parameter.detach().clone() for parameter in update.model.parameters()]
    update.optimizer = torch.optim.SGD(update.model.parameters(), lr=1.0)
    losses = update(task.objective.craft(batch_at(task, 0, rank, size)), 1.0, Stopwatch(CPU))
    moved = [then - now.detach() for then, now in zip(before, update.model.parameters(), strict=True)]
    with torch.no_grad():
        for parameter, then in zip(update.model.parameters(), before, strict=True):
            parameter.copy_(then)
    return moved, losses


@pytest.mark.parametrize("micro_batch", [1, 8, 12, 31, 40])
@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    phase: str, micro_batch: int, pretrain: Make, finetune: Make
) -> None:
    """Also where they do not divide it: 12 of 32 are 12, 12 and 8."""
    if phase == "pretrain":
        task = pretraining(pretrain())
    else:
        terms = {"masked": {"weight": 1}, "feature": {"weight": 1}, "kl": {"weight": 1}}
        task = purification(finetune({"loss": terms, "noise": 0.1}))
    whole, losses = gradient(task, None)
    parts, same = gradient(task, micro_batch)
    # The gradient of an absolute value jumps where rounding changes a sign, so single values may differ.
    both = [torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (whole, parts)]
    assert (both[0] - both[1]).norm() < 0.01 * both[0].norm()
    for name in losses.parts:
        torch.testing.assert_close(same.parts[name], losses.parts[name], rtol=1e-3, atol=1e-5)


def test_unequal_parts_of_a_batch_count_by_their_images(pretrain: Make) -> None:
    """Three workers with 11, 11 and 10 of 32 images: the mean of their gradients is that of the whole batch."""
    task = pretraining(pretrain())
    whole, losses = gradient(task, None)
    parts = [gradient(task, None, rank, 3) for rank in range(3)]
    for one, *others in zip(whole, *(moved for moved, _ in parts), strict=True):
        torch.testing.assert_close(torch.stack(others).mean(dim=0), one, rtol=1e-4, atol=1e-6)
    of_all = sum(share * each.loss for share, (_, each) in zip((11 / 32, 11 / 32, 10 / 32), parts, strict=True))
    torch.testing.assert_close(of_all, losses.loss, rtol=1e-5, atol=1e-6)


def test_micro_batches_are_the_batch_in_order(pretrain: Make) -> None:
    batch = batch_at(pretraining(pretrain()))
    parts = list(micro_batches(batch, 12))
    assert [len(part.images) for part in parts] == [12, 12, 8]
    for name in ("images", "labels", "keys", "places"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert {(part.step_key, part.size, part.progress) for part in parts} == {(batch.step_key, 32, 0.0)}
    assert next(micro_batches(batch, None)) is batch


def test_run_resumes_with_other_precision_and_micro_batches(
    pretrain: Make, unkilled_pretrain: Any, tmp_path: Path
) -> None:
    """Micro-batches and precision do not decide the result: a stopped run resumes with others."""
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain(micro_batch=5)), tmp_path, [Heard(stop_after_checkpoints=1)])
    heard = Heard()
    result = run(pretraining(pretrain(precision="fp32", micro_batch=16)), tmp_path, [heard])
    assert result.config == unkilled_pretrain[0].config
    wanted = [progress.metrics["loss"] for progress in unkilled_pretrain[1].steps[3:]]
    assert [progress.metrics["loss"] for progress in heard.steps] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("kind", ["mae", "conv"])
def test_the_fused_optimiser_is_the_plain_one(kind: str, pretrain: Make) -> None:
    """From the same gradients the same weights, also in memory that is channels_last, as the loop has it."""
    models: list[nn.Module] = []
    for fused in (True, False):
        torch.manual_seed(0)
        mae = pretraining(pretrain()).objective.model
        model = mae if kind == "mae" else ConvPurifier(ConvConfig(channels=(4, 8), blocks=1))
        model = model.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, LoopConfig(lr=1e-2), fused)
        for _ in range(20):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        models.append(model)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_average_follows_the_weights_and_forgets_the_start() -> None:
    model = nn.BatchNorm1d(3)
    average = MovingAverage(model, 0.9)
    wanted = model.weight.detach().clone()
    for step in range(60):
        with torch.no_grad():
            model.weight.fill_(step)
            model.num_batches_tracked.fill_(step)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * step
        torch.testing.assert_close(average.weights["weight"], wanted, rtol=1e-4, atol=1e-4)
    assert average.weights["num_batches_tracked"] == 59
    assert 50 < float(average.weights["weight"][0]) < 55  # some steps behind, and nothing of the first


def test_average_is_the_result_and_survives_a_stop(pretrain: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    whole = run(pretraining(pretrain(ema=0.8)), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain(ema=0.8)), tmp_path / "stopped", [Heard(stop_after_checkpoints=2)])
    again = run(pretraining(pretrain(ema=0.8)), tmp_path / "stopped")
    assert again.sha256 == whole.sha256
    assert weights(whole) != weights(unkilled_pretrain[0])
    assert whole.config["train"]["loop"]["ema"] == 0.8


def test_checkpoint_holds_the_average_and_the_weights(pretrain: Make, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(pretrain(ema=0.8)), tmp_path, [Heard(stop_after_checkpoints=1)])
    from maep import artifact

    saved = artifact.read(tmp_path / "checkpoints" / "000000000096")
    averaged = saved.state()["averaged"]
    assert averaged.keys() == saved.weights().keys()
    assert any(not torch.equal(averaged[name], tensor) for name, tensor in saved.weights().items())
    plain = run(pretraining(pretrain(samples=96)), tmp_path / "plain")  # another schedule: only the names are compared
    assert plain.weights().keys() == averaged.keys()


def test_per_256_scales_the_learning_rate_by_the_batch() -> None:
    loop = LoopConfig(samples=10_240, batch_size=1024, lr=1.5e-4, lr_rule="per_256", warmup=0.1)
    assert loop.peak_lr == pytest.approx(6e-4)
    assert max(learning_rate(step / 10, loop) for step in range(10)) == pytest.approx(6e-4)
    assert replace(loop, lr_rule="absolute").peak_lr == 1.5e-4


def test_precision_is_chosen_by_the_device_or_by_name(pretrain: Make, tmp_path: Path) -> None:
    loop = LoopConfig()
    assert pick_dtype(loop, CPU) == torch.float32
    assert pick_dtype(loop, torch.device("cuda")) == torch.bfloat16
    assert pick_dtype(replace(loop, precision="fp32"), torch.device("cuda")) == torch.float32


@pytest.mark.usefixtures("plain_attention")
def test_bf16_on_a_cpu_without_amx_trains_and_warns(
    pretrain: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    heard = Heard()
    with pytest.warns(UserWarning, match="bf16"):
        result = run(pretraining(pretrain(precision="bf16", samples=1600, lr=5e-3)), tmp_path, [heard])
    assert heard.steps[-1].metrics["loss"] < heard.steps[0].metrics["loss"]
    assert {tensor.dtype for tensor in result.weights().values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_blocks_learn_the_same_under_the_same_names(
    pretrain: Make, unkilled_pretrain: Any, tmp_path: Path
) -> None:
    heard = Heard()
    task = pretraining(pretrain(compile=True))
    result = run(task, tmp_path, [heard])
    assert any(module._compiled_call_impl is not None for module in task.objective.model.modules())
    assert result.weights().keys() == unkilled_pretrain[0].weights().keys()
    wanted = [progress.metrics["loss"] for progress in unkilled_pretrain[1].steps]
    assert [progress.metrics["loss"] for progress in heard.steps] == pytest.approx(wanted, rel=1e-3)


def test_missing_compiler_is_refused(pretrain: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"loop\.compile.*clang\+\+"):
        compile_blocks(pretraining(pretrain()).objective.model, CPU)
    with pytest.raises(ConfigError, match=r"loop\.compile"):
        run(pretraining(pretrain(compile=True)), tmp_path / "out")


def test_fsdp_needs_an_autoencoder_and_several_workers(pretrain: Make, finetune: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loop\.parallel: fsdp"):
        run(purification(finetune(parallel="fsdp")), tmp_path / "a")
    with pytest.warns(UserWarning, match=r"loop\.parallel: fsdp"):
        run(pretraining(pretrain(parallel="fsdp")), tmp_path / "b")


def test_non_finite_gradient_stops_the_run(pretrain: Make, tmp_path: Path) -> None:
    task = pretraining(pretrain(clip=None))
    forward, calls = task.objective.forward, []

    def steep(batch: Batch) -> Losses:
        calls.append(batch)
        losses: Losses = forward(batch)
        edge = (losses.loss.detach() - losses.loss).abs().sqrt()  # 0, where the slope of the root is infinite
        return losses._replace(loss=losses.loss + edge) if len(calls) == 3 else losses

    task.objective.forward = steep  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=r"(nan|inf) at step 2, .*\[\d+, "):
        run(task, tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ({"micro_batch": 0}, "micro_batch: 0 must be at least 1"),
        ({"ema": 1.0}, "ema: 1.0 must be between 0 and 1, for example 0.999"),
        ({"precision": "fp16"}, "loop.precision: 'fp16' is not known"),
        ({"lr_rule": "per256"}, "loop.lr_rule: 'per256' is not known: did you mean 'per_256'?"),
        ({"parallel": "fspd"}, "loop.parallel: 'fspd' is not known: did you mean 'fsdp'?"),
    ],
)
def test_bad_loop_settings_are_refused(loop: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(PretrainConfig, {"model": MAE, "loop": LOOP | loop})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_phases_add_up_to_the_step(pretrain: Make, unkilled_pretrain: Any) -> None:
    """The phases are the step: together they take no longer than the steps did, and most of that time."""
    for progress in unkilled_pretrain[1].steps:
        split = [progress.metrics[f"{phase}_s"] for phase in ("data", "forward", "backward", "optimizer")]
        assert all(seconds > 0 for seconds in split)
        assert sum(split) <= 32 / progress.metrics["images_per_s"]
        assert progress.metrics["mfu"] > 0
        assert math.isfinite(progress.metrics["grad_norm"])
        assert progress.metrics["peak_memory_mib"] > 50
