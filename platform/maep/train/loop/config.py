"""How long and how fast to train, and where: the training loop and its workers, as configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maep import config


@dataclass(frozen=True)
class LoopConfig:
    """The training loop. Lengths are in images seen."""

    samples: int = config.key(100_000, "Length of the run, in images seen.", decides=True)
    batch_size: int = config.key(128, "Images of one step, over all workers together.", decides=True)
    replays: int = config.key(
        1,
        """Updates on each batch. Its attacked images are made once for all of them (minibatch replay, Shafahi et al.
        2019, arXiv 1904.12843).""",
        decides=True,
    )
    lr: float = config.key(1e-3, "Peak learning rate, scaled by `lr_rule`.", decides=True)
    lr_rule: Literal["absolute", "per_256"] = config.key(
        "absolute",
        "per_256: the peak is lr x batch_size / 256, as in MAE (He et al. 2022, appendix A.1).",
        decides=True,
    )
    warmup: float = config.key(
        0.05,
        "Share in [0, 1) of the run over which the learning rate rises; then it falls by `decay`.",
        decides=True,
    )
    decay: Literal["cosine", "linear"] = config.key(
        "cosine", "How the learning rate falls to zero after the warm-up.", decides=True
    )
    optimizer: Literal["adamw", "muon"] = config.key(
        "adamw",
        "muon: Muon with rate `lr` on the kernels of convolutions, SGD with rate `sgd_lr` on all else.",
        decides=True,
    )
    sgd_lr: float = config.key(0.05, "With `optimizer` muon: peak learning rate of SGD.", decides=True)
    momentum: float = config.key(0.9, "With `optimizer` muon: momentum of both.", decides=True)
    weight_decay: float = config.key(0.05, "Weight decay of AdamW, or of SGD.", decides=True)
    betas: tuple[float, float] = config.key((0.9, 0.95), "Betas of AdamW.", decides=True)
    clip: float | None = config.key(1.0, "Largest norm of the gradient; null: no clipping.", decides=True)
    ema: float | None = config.key(
        None,
        "Decay in (0, 1), such as 0.999, of a moving average of the weights, which becomes the result; null: none.",
        decides=True,
    )
    seed: int = config.key(
        0, "Seed of the initial weights, the order of images, augmentation and attacks.", decides=True
    )
    augment: bool = config.key(True, "Crop and flip training images at random.", decides=True)
    checkpoint_every: int = config.key(20_000, "Images between checkpoints.", decides=False)
    keep_checkpoints: int = config.key(2, "Number of checkpoints kept while training.", decides=False)
    keep_best: str | None = config.key(
        None,
        """Validation metric whose best checkpoint is kept beside the result, as `best`: the highest value, or with a
        leading `-` the lowest; null: none. Needs `validation.every_checkpoint`.""",
        decides=False,
    )
    pause_at: int | None = config.key(
        None,
        "Images after which the run saves a checkpoint and stops; re-run with a larger value or null to resume.",
        decides=False,
    )
    device: Literal["auto", "cpu", "cuda"] = config.key("auto", "auto: a GPU if available.", decides=False)
    precision: Literal["auto", "fp32", "bf16"] = config.key(
        "auto",
        "Of matrix products in the forward and backward pass; weights stay fp32. auto: bf16 on a GPU, fp32 on a CPU.",
        decides=False,
    )
    micro_batch: int | None = config.key(
        None,
        """Most images in one forward pass of a worker; null: its whole share of the batch. The update is
        the same, except for batch norm and the masks of a randomised purifier.""",
        decides=False,
    )
    compile: bool = config.key(
        False, "Compile the model's blocks (torch.compile), which takes a minute at the start.", decides=False
    )
    parallel: Literal["ddp", "fsdp"] = config.key(
        "ddp",
        "ddp: every worker holds all weights; fsdp: every worker holds a shard (FSDP2, pretrain only).",
        decides=False,
    )

    def __post_init__(self) -> None:
        """Raises ValueError for runs without a step, and for values out of range."""
        if self.batch_size < 1 or self.samples < self.batch_size:
            raise ValueError(f"samples: {self.samples} must be at least one batch (batch_size: {self.batch_size})")
        if not self.lr > 0 or not 0 <= self.warmup < 1:
            raise ValueError(f"lr: {self.lr} must be above 0, and warmup: {self.warmup} in [0, 1)")
        if not self.sgd_lr > 0 or not 0 <= self.momentum < 1:
            raise ValueError(f"sgd_lr: {self.sgd_lr} must be above 0, and momentum: {self.momentum} in [0, 1)")
        if not self.weight_decay >= 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"weight_decay: {self.weight_decay} must not be negative, betas: {self.betas} in [0, 1)")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: {self.clip} must be above 0, or null for no clipping")
        if self.checkpoint_every < 1 or self.keep_checkpoints < 1 or self.replays < 1:
            raise ValueError("checkpoint_every, keep_checkpoints and replays must be at least 1")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch: {self.micro_batch} must be at least 1, or null for the whole batch")
        if self.pause_at is not None and self.pause_at < self.batch_size:
            raise ValueError(f"pause_at: {self.pause_at} must be at least one batch of {self.batch_size}, or null")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema: {self.ema} must be between 0 and 1, for example 0.999, or null for none")

    @property
    def peak_lr(self) -> float:
        """The learning rate at the end of the warmup."""
        return self.lr * self.batch_size / 256 if self.lr_rule == "per_256" else self.lr

    @property
    def num_steps(self) -> int:
        """Whole batches in the run."""
        return self.samples // self.batch_size

    @property
    def last_step(self) -> int:
        """The step after which the run ends, or pauses."""
        return self.num_steps if self.pause_at is None else min(self.num_steps, self.pause_at // self.batch_size)


@dataclass(frozen=True)
class WorkersConfig:
    """Where the loop runs."""

    num_workers: int | tuple[int, int] = config.key(
        0,
        """0: this process; 1 and more: Ray Train workers; a range, such as [1, 8]: as many as the cluster has room for,
        fewer when a machine dies and more when one joins.""",
        decides=False,
    )
    cpus_per_worker: float = config.key(1.0, "Ray's logical CPUs of one worker.", decides=False)
    use_gpu: bool = config.key(False, "Give each worker a GPU.", decides=False)
    max_failures: int = config.key(
        3, "Restarts of the workers after failures, each from the newest checkpoint.", decides=False
    )
    start_timeout_s: float = config.key(
        300.0, "Seconds that the cluster may take to place the workers before the run fails.", decides=False
    )
    resize_every_s: float = config.key(
        60.0, "Seconds between checks of whether there is room for more workers of a range.", decides=False
    )

    def __post_init__(self) -> None:
        """Raises ValueError for an invalid range."""
        if self.least < (0 if isinstance(self.num_workers, int) else 1) or self.most < self.least:
            raise ValueError(
                f"num_workers: {self.num_workers} must be 0 (this process), a number, or a range [1, 2] of workers"
            )
        for key in ("cpus_per_worker", "max_failures", "start_timeout_s", "resize_every_s"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}: {getattr(self, key)} must not be negative")

    @property
    def least(self) -> int:
        """The smallest number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most(self) -> int:
        """The largest number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]
