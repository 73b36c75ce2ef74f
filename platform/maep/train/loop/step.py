"""One training step: precision, micro-batches, gradients over all workers, clipping, update, moving average.

A batch is divided among the workers, and each part into micro-batches. All are weighted by their images: every loss is
a mean over images, so the gradient is that of the whole batch, however it is divided.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maep.errors import ConfigError
from maep.models.layers import ResidualBlock
from maep.train.batch import Batch
from maep.train.config import LoopConfig
from maep.train.loop.meter import Stopwatch
from maep.train.loop.nonfinite import OF_ALL
from maep.train.loop.optimizers import make_optimizer, set_learning_rate
from maep.train.loop.sharding import like, shard, whole
from maep.train.loop.weight_average import MovingAverage
from maep.train.objectives import Losses, Objective


class TrainingStep:
    """Updates `objective.model`, which is on `device` already; all workers must make the same calls."""

    def __init__(self, objective: Objective, loop: LoopConfig, num_workers: int, device: torch.device) -> None:
        self.objective, self.loop, self.num_workers, self.device = objective, loop, num_workers, device
        self.model = objective.model
        self.dtype = pick_dtype(loop, device)
        if loop.compile:
            compile_blocks(self.model, device)
        self.parallel: nn.Module = objective
        if loop.parallel == "fsdp":
            self._shard()
        self.optimizer = make_optimizer(self.model, loop)
        self.average = MovingAverage(self.model, loop.ema) if loop.ema is not None else None

    def connect(self) -> None:
        """Wraps the objective for several workers; call once, after the initial weights are loaded."""
        if self.num_workers > 1 and self.loop.parallel == "ddp":
            self.parallel = DistributedDataParallel(
                self.objective,
                find_unused_parameters=not self.objective.uses_all_weights,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def __call__(self, batch: Batch, lr: float, watch: Stopwatch) -> Losses:
        """One update. Returns the losses of this worker's part of the batch, and the `grad_norm` of the whole.

        Raises FloatingPointError on all workers where the loss or gradient of any is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(batch, watch)
        norm = self._clipped()
        if not torch.isfinite(norm):
            finite = torch.isfinite(losses.loss)
            raise FloatingPointError(f"{OF_ALL} is {norm.item()}" if finite else f"the loss is {losses.loss.item()}")
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        watch.lap("optimizer")
        return losses._replace(parts=losses.parts | {"grad_norm": norm})

    def autocast(self) -> torch.autocast:
        """The precision of products in forward passes, as a context."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def communication_s(self) -> float | None:
        """Seconds of a step in which the backward pass waits for other workers, as sampled by DDP.

        From the end of this worker's own gradients to the end of the last exchange. None for one worker, or FSDP.
        """
        if not isinstance(self.parallel, DistributedDataParallel):
            return None
        data: dict[str, Any] = self.parallel._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        waits = data.get("avg_backward_comm_time", 0) - data.get("avg_backward_compute_comm_overlap_time", 0)
        return max(0.0, float(waits) / 1e9)

    def weights(self) -> dict[str, Tensor]:
        """The model's weights, whole; all workers must call."""
        found: dict[str, Tensor] = whole(self.model.state_dict())
        return found

    def result(self) -> dict[str, Tensor]:
        """The trained weights: the moving average where there is one; all workers must call."""
        if self.average is None:
            return self.weights()
        found: dict[str, Tensor] = whole(self.average.weights)
        return found

    def state(self) -> dict[str, Any]:
        """The training state for `load`, besides `result`, whole; all workers must call."""
        state: dict[str, Any] = {"optimizer": whole(self.optimizer.state_dict())}
        if self.average is not None:
            state |= {"averaged": self.weights(), "updates": self.average.updates}
        return state

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restores `weights` (a `result`) and `state`, of any number of workers, sharded or not."""
        present = self.model.state_dict()
        if self.average is not None:
            held = self.average.weights
            self.average.load({name: like(tensor, held[name]) for name, tensor in weights.items()}, state["updates"])
            weights = state["averaged"]
        self.model.load_state_dict({name: like(tensor, present[name]) for name, tensor in weights.items()})
        self.optimizer.load_state_dict(self._shares(state["optimizer"]))

    def _backward(self, batch: Batch, watch: Stopwatch) -> Losses:
        total: Losses | None = None
        weight = self.num_workers * len(batch.images) / batch.size  # 1 for equal parts; DDP averages over workers
        parts = list(micro_batches(batch, self.loop.micro_batch))
        for number, part in enumerate(parts):
            share = len(part.images) / len(batch.images)
            with self._exchanging(number == len(parts) - 1):
                with self.autocast():
                    losses: Losses = self.parallel(part)
                watch.lap("forward")
                torch.autograd.backward(weight * share * _spread_nan(losses.loss))
                watch.lap("backward")
            total = _sum(total, losses, share)
        assert total is not None
        return total

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged in the last micro-batch's backward pass only."""
        if self.loop.parallel == "fsdp" and self.num_workers > 1:
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        if last or not isinstance(self.parallel, DistributedDataParallel):
            return nullcontext()
        waiting: AbstractContextManager[None] = self.parallel.no_sync()
        return waiting

    def _clipped(self) -> Tensor:
        """The norm of the whole gradient before it is clipped to `clip`."""
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        if self.loop.clip is not None:
            norm = nn.utils.clip_grad_norm_(trained, self.loop.clip)
        else:
            norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
        found: Tensor = whole(norm)
        return found

    def _shard(self) -> None:
        if self.objective.shards_by is None:
            raise ConfigError("loop.parallel: fsdp shards an autoencoder in maep pretrain only: use ddp")
        if self.num_workers == 1:
            warnings.warn("loop.parallel: fsdp has no effect with one worker", stacklevel=2)
        else:
            shard(self.model, self.objective.shards_by, self.device, self.num_workers)

    def _shares(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """An optimizer's whole state, sharded like its parameters."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        shares = {
            place: {
                key: like(value, parameters[place]) if value.shape == parameters[place].shape else value
                for key, value in values.items()
            }
            for place, values in state["state"].items()
        }
        return {**state, "state": shares}


def check_shares(loop: LoopConfig, num_workers: int) -> None:
    """Raises ConfigError for a batch with fewer images than workers, or, for FSDP, that does not divide evenly.

    All workers must call a sharded model equally often.
    """
    if loop.batch_size < num_workers:
        raise ConfigError(
            f"loop.batch_size: {loop.batch_size} is fewer than {num_workers} workers: raise it, or lower"
            " workers.num_workers"
        )
    if loop.parallel == "fsdp" and loop.batch_size % num_workers:
        raise ConfigError(
            f"loop.batch_size: {loop.batch_size} is not a multiple of {num_workers} workers, as loop.parallel fsdp"
            " requires: choose a multiple, or ddp"
        )


def micro_batches(batch: Batch, most: int | None) -> Iterator[Batch]:
    """`batch` in parts of at most `most` images; None does not divide it."""
    count = len(batch.images)
    if most is None or most >= count:
        yield batch
        return
    for start in range(0, count, most):
        yield batch.select(slice(start, start + most))


def pick_dtype(loop: LoopConfig, device: torch.device) -> torch.dtype:
    """The dtype of matrix products. Warns about bf16 on a CPU without AMX, where it is slower."""
    if loop.precision == "fp32" or (loop.precision == "auto" and device.type == "cpu"):
        return torch.float32
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("amx_bf16", False):
        warnings.warn("loop.precision: bf16 is about twice as slow as fp32 on this CPU, which has no AMX", stacklevel=2)
    return torch.bfloat16


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compiles each repeated block of the model in place, so that weights keep their names.

    This takes a fraction of the time that the whole model would, and works however the model is called (attacks call
    its parts). Raises ConfigError without a compiler.
    """
    on_gpu = device.type == "cuda"  # Triton generates C code that launches its kernels
    variable, usual = ("CC", ("gcc", "clang", "cc")) if on_gpu else ("CXX", ("g++", "clang++", "c++"))
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ((named,) if named else usual)):
        raise ConfigError(
            f"loop.compile: true needs a {'C' if on_gpu else 'C++'} compiler, {named or ' or '.join(usual[:2])} on the"
            f" PATH (or another in ${variable}): install one, or set it to false"
        )
    if on_gpu and importlib.util.find_spec("triton") is None:
        raise ConfigError("loop.compile: true needs Triton on a GPU: install it, or set it to false")
    for module in model.modules():
        if isinstance(module, Block | ResidualBlock):
            module.compile()


def _spread_nan(loss: Tensor) -> Tensor:
    """`loss` with an all-NaN gradient where it is not finite, so that all workers see it after the exchange."""
    value = loss.detach()
    return loss * (1 + (value - value))


def _sum(total: Losses | None, losses: Losses, share: float) -> Losses:
    """`total` plus `share` of `losses`."""
    loss, parts = share * losses.loss.detach(), {name: share * part for name, part in losses.parts.items()}
    if total is None:
        return Losses(loss, parts)
    return Losses(total.loss + loss, {name: total.parts[name] + part for name, part in parts.items()})
