"""What a training run is made of: data, model, objective, optimisation. One class a phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from maep import config
from maep.data import datasets
from maep.data.datasets import DataConfig
from maep.data.stream.loaders import LoaderConfig
from maep.models.conv import ConvConfig
from maep.models.lora import LoraConfig
from maep.models.mae import MaeConfig
from maep.models.purifier import PurifierConfig
from maep.train.attack_mixture import AttackMixConfig

_PLACE = ("device", "checkpoint_every", "keep_checkpoints", "keep_best", "pause_at")
_NEWER = {"lr_rule": "absolute", "ema": None}
"""Keys that runs of earlier versions do not name, with what these did."""
_MEANS = ("precision", "micro_batch", "compile", "parallel")


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast and how often saved. Lengths are in images seen."""

    samples: int = 100_000
    batch_size: int = 128
    """Images of one step, over all workers together."""
    replays: int = 1
    """Updates on each batch. What is made of a batch at some cost, its attacked images, is made once for all of them
    (minibatch replay, Shafahi et al. 2019, arXiv 1904.12843)."""
    lr: float = 1e-3
    """Peak learning rate, read by `lr_rule`."""
    lr_rule: Literal["absolute", "per_256"] = "absolute"
    """`per_256`: the peak is lr x batch_size / 256, as in MAE (He et al. 2022, appendix A.1)."""
    warmup: float = 0.05
    """Share of the run over which the learning rate rises; then it falls as a half cosine."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    """Largest norm of the gradient; null: not clipped."""
    ema: float | None = None
    """Decay of a moving average of the weights, for example 0.999, which is then the result; null: none."""
    seed: int = 0
    augment: bool = True
    checkpoint_every: int = 20_000
    keep_checkpoints: int = 2
    keep_best: str | None = None
    """A metric of the validation whose best checkpoint is kept beside the result, as `best`: the highest value, or,
    with a `-` before its name, the lowest; null: none."""
    pause_at: int | None = None
    """Images after which the run takes a checkpoint and stops, as after a notice; the same run with a later one, or
    null (to the end), goes on from there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of products in forward and backward pass; weights are fp32 always. `auto`: bf16 on a GPU, fp32 on a CPU."""
    micro_batch: int | None = None
    """Most images that a worker takes through the model at once; null: all of its part of the batch. The update is the
    same. (Batch norm, and the masks of a randomised purifier, go by the images that pass together.)"""
    compile: bool = False
    """Whether the model's blocks are compiled (torch.compile), which takes a minute at the start."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several workers hold the weights: each all of them, or each a share (FSDP2; `maep pretrain` only)."""

    def __post_init__(self) -> None:
        """Refuses runs without a step."""
        if self.batch_size < 1 or self.samples < self.batch_size:
            raise ValueError(f"samples: {self.samples} must be at least one batch of {self.batch_size}")
        if self.lr <= 0 or not 0 <= self.warmup < 1:
            raise ValueError("lr must be above 0 and warmup in [0, 1)")
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
        """The learning rate where the warmup ends."""
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
    """Where the loop runs: `num_workers` 0 is this process; 1 and more are Ray Train workers."""

    num_workers: int | tuple[int, int] = 0
    """A range, as [1, 8]: as many as the cluster has room for, fewer when a machine dies and more when one comes."""
    cpus_per_worker: float = 1.0
    use_gpu: bool = False
    max_failures: int = 3
    """How often Ray may start a group of workers anew, each time from the newest checkpoint."""
    start_timeout_s: float = 300.0
    """How long the cluster may take to place the workers before the run is given up."""
    resize_every_s: float = 60.0
    """How often a range of workers looks for room for more."""

    def __post_init__(self) -> None:
        """Refuses a range that is none."""
        if self.least < (0 if isinstance(self.num_workers, int) else 1) or self.most < self.least:
            raise ValueError(
                f"num_workers: {self.num_workers} must be 0 (this process), a number, or a range [1, 2] of workers"
            )

    @property
    def least(self) -> int:
        """The smallest number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most(self) -> int:
        """The largest number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


def deciding(settings: Any) -> dict[str, Any]:
    """A phase's settings without those of where, how often saved and by what means it runs.

    Those change no weight by more than rounding does: a run goes on under others.
    """
    values = config.to_dict(settings)
    del values["workers"], values["loader"]  # what a loader decides shows in the data it opens
    values.pop("validation", None)
    if values.get("lora") is None:
        values.pop("lora", None)  # adapters that are not there decide nothing
    for key, usual in _NEWER.items():
        if values["loop"][key] == usual:
            del values["loop"][key]
    values["data"] = datasets.deciding(settings.data)
    for key in (*_PLACE, *_MEANS):
        del values["loop"][key]
    return values


@dataclass(frozen=True)
class ValidationConfig:
    """What is measured of a checkpoint on `dev` images, beside the training (maep.train.validation)."""

    every_checkpoint: bool = False
    """Whether anything is; a checkpoint that waits is passed over for the next one."""
    num_images: int = 128
    """The first ones of the split; fewer where it has fewer."""
    eps: float | None = None
    """Budget of the attacks; null: that of the training, `attacks.eps`."""
    steps: int = 20
    """Steps of PGD, on the bare classifier (once, the images are kept) and through the purifier."""
    adaptive: bool = True
    """Whether the attack through the purifier is made anew for each checkpoint: it takes nearly all of the time."""
    num_cpus: float = 0.0
    """Ray's logical CPUs of the task; it runs at a low priority, so 0 takes no worker's place."""
    deadline_s: float = 600.0
    """How long the run waits at its end for what is still being measured."""

    def __post_init__(self) -> None:
        """Refuses to measure nothing."""
        if self.num_images < 1 or self.steps < 1:
            raise ValueError(f"num_images: {self.num_images} and steps: {self.steps} must be at least 1")
        if self.eps is not None and not 0 <= self.eps <= 1:
            raise ValueError(f"eps: {self.eps} must be in [0, 1]; 8/255 may be written so")
        if self.num_cpus < 0 or self.deadline_s < 0:
            raise ValueError("num_cpus and deadline_s must not be negative")


def _check_best(keep_best: str | None, validation: ValidationConfig, *metrics: str) -> None:
    """Refuses to keep the best by what is never measured."""
    if keep_best is None:
        return
    if not validation.every_checkpoint:
        raise ValueError(f"loop.keep_best: {keep_best} is not measured: set validation.every_checkpoint true")
    if keep_best.removeprefix("-") not in metrics:
        raise ValueError(f"loop.keep_best: {keep_best} is not measured: choose one of {', '.join(metrics)}")


@dataclass(frozen=True)
class PretrainConfig:
    """MAE pretraining: mean squared error on the hidden patches."""

    data: DataConfig = field(default_factory=DataConfig)
    model: MaeConfig = field(default_factory=MaeConfig)
    init: str | None = None
    """Artifact of an autoencoder to go on from, such as one that `maep convert` made; null: random weights."""
    mask_ratio: float = 0.75
    loop: LoopConfig = field(default_factory=LoopConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        """Refuses a ratio that hides nothing or everything."""
        num_patches = self.model.grid[0] * self.model.grid[1]
        if not 0 < self.mask_ratio < 1 or int(num_patches * (1 - self.mask_ratio)) in (0, num_patches):
            raise ValueError(
                f"mask_ratio: {self.mask_ratio} hides none or all of the {num_patches} patches: choose one in between"
            )
        _check_best(self.loop.keep_best, self.validation, "dev_reconstruction")


@dataclass(frozen=True)
class TermConfig:
    """Weight of one term of the loss, and how it changes: points (share of the run, factor), linear in between."""

    weight: float = 0.0
    schedule: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        """Refuses schedules that do not go forward."""
        shares = [share for share, _ in self.schedule]
        if self.weight < 0 or shares != sorted(shares) or any(not 0 <= share <= 1 for share in shares):
            raise ValueError(
                "weight must not be negative; schedule is points (share, factor) of rising share in [0, 1]"
            )

    def at(self, progress: float) -> float:
        """The weight at share `progress` of the run."""
        if not self.schedule:
            return self.weight
        before = [point for point in self.schedule if point[0] <= progress]
        after = [point for point in self.schedule if point[0] > progress]
        if not before or not after:
            return self.weight * (before[-1] if before else after[0])[1]
        (start, low), (end, high) = before[-1], after[0]
        return self.weight * (low + (high - low) * (progress - start) / (end - start))


@dataclass(frozen=True)
class LossConfig:
    """Terms of the purification loss. Pixels are compared in [0, 1]; all terms are means over the batch."""

    pixel: TermConfig = field(default_factory=lambda: TermConfig(3.0))
    pixel_norm: Literal["l1", "l2"] = "l1"
    masked: TermConfig = field(default_factory=TermConfig)
    """MAE's own loss: clean pixels of the hidden patches, from the visible patches of the attacked image."""
    masked_ratio: float = 0.5
    feature: TermConfig = field(default_factory=TermConfig)
    """Mean squared distance of the classifier's last features, purified against clean."""
    kl: TermConfig = field(default_factory=lambda: TermConfig(0.5))
    """KL divergence from the classifier's answer on the clean image to its answer on the purified one."""
    teacher: Literal["first", "attacked"] = "first"
    """Which of the classifiers gives features and answers: always the first, or the one that the step attacks."""

    def __post_init__(self) -> None:
        """Refuses a loss without a term, and masks of nothing or everything."""
        if not any(term.weight for term in (self.pixel, self.masked, self.feature, self.kl)):
            raise ValueError("give at least one of pixel, masked, feature and kl a weight above 0")
        if not 0 < self.masked_ratio < 1:
            raise ValueError(f"masked_ratio: {self.masked_ratio} must be between 0 and 1")


@dataclass(frozen=True)
class FinetuneConfig:
    """Purification: attacked image in, clean image out."""

    data: DataConfig = field(default_factory=DataConfig)
    model: PurifierConfig | ConvConfig = field(default_factory=PurifierConfig)
    init: str | None = None
    """Artifact of the pretrained autoencoder, or of a purifier, to start from; null: random weights."""
    lora: LoraConfig | None = None
    """Adapters beside the weights that `init` gives, which stay as they are; null: all weights are trained."""
    classifiers: tuple[str, ...] = ()
    """Classifiers to attack, as specs (maep.models.classifiers.load); `loss.teacher` says which of them teaches."""
    classifier_shares: tuple[float, ...] = ()
    """How often each is attacked; empty: equally."""
    attacks: AttackMixConfig = field(default_factory=AttackMixConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    noise: float = 16 / 255
    """Largest standard deviation of the Gaussian noise on the attacked image; each image draws its own below it."""
    noise_share: float = 0.7
    """Share of the images that get noise."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        """Refuses an objective without a classifier to attack."""
        if not self.classifiers:
            raise ValueError("classifiers: name at least one, for example [cifar10_resnet20]")
        if self.classifier_shares and len(self.classifier_shares) != len(self.classifiers):
            raise ValueError("classifier_shares: give one for each of classifiers, or none")
        if min(self.classifier_shares, default=0) < 0 or max(self.classifier_shares, default=1) == 0:
            raise ValueError("classifier_shares: none may be negative, and one must be above 0")
        for key in ("noise", "noise_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be in [0, 1]; 8/255 may be written so")
        if self.loss.masked.weight > 0 and self.model.name != "purifier":
            raise ValueError("loss.masked: only model.name purifier has an autoencoder to mask")
        if self.lora is not None and self.model.name != "purifier":
            raise ValueError("lora: only model.name purifier has blocks that take adapters")
        if self.lora is not None and self.init is None:
            raise ValueError("lora: adapters need trained weights beside them: give init, an artifact")
        robust = ["dev_robust"] if self.validation.adaptive else []
        metrics = ("dev_reconstruction", "dev_clean", "dev_oblivious", *robust)
        _check_best(self.loop.keep_best, self.validation, *metrics)
