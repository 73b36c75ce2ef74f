"""Configuration of a search: both phases of a trial, the space, the objectives and the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from maep import config, registry
from maep.attacks.config import AttackConfig
from maep.train.config import ClassifierConfig, FinetuneConfig, PretrainConfig
from maep.tune.search.space import Axis


@dataclass(frozen=True)
class BudgetConfig:
    """The budget of each trial."""

    kind: Literal["samples_seen", "flops", "core_seconds"] = config.key(
        "samples_seen",
        """samples_seen: images in training steps; flops: floating-point operations of those steps; core_seconds: their
        processor seconds (CPU only).""",
        decides=True,
    )
    amount: float = config.key(
        100_000, "Budget of one trial that trains to the end, both phases together.", decides=True
    )
    pretrain_share: float = config.key(
        0.25,
        "Share in [0, 1) of the budget for pretraining, if any; a shared pretraining counts in full for each trial.",
        decides=True,
    )

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        if not self.amount > 0:
            raise ValueError(f"amount: {self.amount:g} must be above 0")
        if not 0 <= self.pretrain_share < 1:
            raise ValueError(f"pretrain_share: {self.pretrain_share:g} must be in [0, 1)")


@dataclass(frozen=True)
class HalvingConfig:
    """Successive halving (maep.tune.search.halving)."""

    num_rungs: int = config.key(
        3,
        "Number of rungs. The last one ends a trial; each takes `factor` times the images of the one before.",
        decides=True,
    )
    factor: int = config.key(3, "The best 1 in `factor` of the trials measured at a rung continue.", decides=True)

    def __post_init__(self) -> None:
        """Raises ValueError for halving that stops nothing."""
        if self.num_rungs < 2 or self.factor < 2:
            raise ValueError(f"num_rungs: {self.num_rungs} and factor: {self.factor} must be at least 2")


@dataclass(frozen=True)
class MeasureConfig:
    """How a trial's purifier is measured on `dev`, in front of `finetune.classifiers[0]`.

    These figures choose among trials, from few images; `maep evaluate` measures the figures to report.
    """

    num_images: int = config.key(128, "Number of images, from the start of `dev`.", decides=True)
    eps: float | None = config.key(
        None, "Budget of the oblivious attacks, in [0, 1]; null: `finetune.attacks.eps`.", decides=True
    )
    oblivious: tuple[str, ...] = config.key(
        ("fgsm", "pgd", "apgd-ce"),
        "Attacks on the bare classifier, made once for all trials; an image counts as right if all of them fail.",
        decides=True,
        choices=registry.attacks.names,
    )
    steps: int = config.key(20, "Steps (queries, draws) of the oblivious attacks.", decides=True)
    adaptive: str = config.key(
        "apgd-ce",
        "Attack through purifier and classifier, made for each trial.",
        decides=True,
        choices=registry.attacks.names,
    )
    adaptive_eps: float | None = config.key(
        None, "Budget of the adaptive attack, in [0, 1]; null: the same as `eps`.", decides=True
    )
    adaptive_steps: int = config.key(20, "Steps (queries, draws) of the adaptive attack.", decides=True)
    eot: int = config.key(
        10, "Forward passes averaged in one gradient of the adaptive attack on a randomised purifier.", decides=True
    )
    draws: int = config.key(
        10, "Forward passes whose majority is the prediction of a randomised purifier.", decides=True
    )
    adaptive_images: int | None = config.key(
        None, "Number of images, from the first, for the adaptive attack; null: all.", decides=True
    )
    latency_passes: int = config.key(
        30, "`latency_ms` is the median of that many forward passes of one image.", decides=True
    )

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        for name in (*self.oblivious, self.adaptive):
            AttackConfig(name)  # raises for a name that is not an attack in Linf
        for key in ("num_images", "steps", "adaptive_steps", "eot", "draws", "latency_passes"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1")
        for key in ("eps", "adaptive_eps"):
            if getattr(self, key) is not None and not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be in [0, 1], for example 8/255")
        if self.adaptive_images is not None and not 1 <= self.adaptive_images <= self.num_images:
            raise ValueError(f"adaptive_images: {self.adaptive_images} must be in 1..num_images ({self.num_images})")


@dataclass(frozen=True)
class TuneConfig:
    """One search."""

    classifiers: tuple[ClassifierConfig, ...] = config.key(
        (), "Classifiers that the search trains first; `finetune.classifiers` refers to them by `name`.", decides=True
    )
    pretrain: PretrainConfig | None = config.key(
        None,
        """Pretraining of each trial, shared by the trials that agree on it; null: purifiers start from random
        weights.""",
        decides=True,
    )
    finetune: FinetuneConfig = config.section(
        lambda: FinetuneConfig(classifiers=("cifar10_resnet20",)),
        "What trials have in common. The budget sets `loop.samples` of both phases.",
    )
    space: dict[str, Axis] = config.key(
        {},
        """Keys to search over, each with its values: by short name (mask_ratio, patch_size, width ..., see
        maep.tune.trial.trial) or dotted key of a phase.""",
        decides=True,
    )
    constraints: tuple[str, ...] = config.key(
        (), "Comparisons of keys that a trial must satisfy, such as `width % 8 == 0`.", decides=True
    )
    fixed: tuple[dict[str, Any], ...] = config.key(
        (),
        "Settings tried first, besides those that the searcher chooses: references, repeats by `seed`.",
        decides=True,
    )
    objectives: tuple[str, ...] = config.key(
        ("adaptive_accuracy",),
        """What to optimise. With several, the search reports the Pareto front, and the first one breaks ties.
        latency_ms depends on the machine, so searches with it are not exactly repeatable.""",
        decides=True,
    )
    limits: dict[str, float] = config.key(
        {},
        "Limits on the best trial: upper limits of latency_ms and num_parameters, lower limits of accuracies.",
        decides=True,
    )
    measure: MeasureConfig = config.section(MeasureConfig)
    budget: BudgetConfig = config.section(BudgetConfig)
    searcher: Literal["tpe", "random", "grid"] = config.key("tpe", "How settings are chosen.", decides=True)
    num_trials: int = config.key(
        16, "Number of settings tried, besides `fixed`; of a smaller space, all are tried.", decides=True
    )
    generation: int = config.key(
        8,
        """Number of settings that are chosen together and compared at each rung; at least the number of trials that can
        run at once keeps all machines busy. Results depend on it, so it is not derived from the number of machines.""",
        decides=True,
    )
    halving: HalvingConfig | None = config.key(
        None, "Successive halving; null: every trial gets its whole budget.", decides=True
    )
    seed: int = config.key(
        0, "Seed of the choices, and of every trial's training unless its settings have a `seed`.", decides=True
    )
    cpus_per_trial: float = config.key(
        1.0, "Ray's logical CPUs of a single-process trial; a phase with `workers` uses theirs instead.", decides=False
    )
    gpus_per_trial: float = config.key(0.0, "GPUs of such a trial; with 0.25, four trials share one.", decides=False)
    max_failures: int = config.key(
        2, "Restarts of a trial whose process or machine dies, from its newest checkpoint.", decides=False
    )

    def __post_init__(self) -> None:
        """Raises ValueError for a search without objective, space or budget."""
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives: name at least one of {', '.join(registry.metrics.names())}, none twice")
        for name in self.objectives:
            if "loss" in name or "reconstruction" in name:
                raise ValueError(
                    f"objectives: {name} is not comparable across patch sizes and mask ratios:"
                    f" choose from {', '.join(registry.metrics.names())}"
                )
        registry.metrics.require(self.objectives, "objectives")
        if "oblivious_accuracy" in self.objectives and not self.measure.oblivious:
            raise ValueError("objectives: oblivious_accuracy needs measure.oblivious, at least one attack")
        for name in self.limits:
            registry.metrics.require([name], "limits")
            if registry.metrics.declared(name).unit == "%" and not 0 <= self.limits[name] <= 1:
                raise ValueError(f"limits.{name}: {self.limits[name]:g} must be a share in [0, 1]")
        if self.pretrain is not None and not self.budget.pretrain_share:
            raise ValueError(
                "budget.pretrain_share: 0 leaves nothing for pretrain: raise it, or leave out the section pretrain"
            )
        if not self.space and not self.fixed:
            raise ValueError("space: is empty: name at least one key, for example mask_ratio: {uniform: [0.3, 0.8]}")
        for key in ("num_trials", "generation"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1")
        if self.cpus_per_trial <= 0 or self.gpus_per_trial < 0 or self.max_failures < 0:
            raise ValueError(
                f"cpus_per_trial: {self.cpus_per_trial:g} must be above 0; gpus_per_trial and max_failures at least 0"
            )
        if self.searcher == "grid":
            endless = [key for key, axis in self.space.items() if axis.values is None]
            if endless:
                raise ValueError(f"space.{endless[0]}: a grid needs choice or integer: use one, or searcher tpe")


def sign(objective: str) -> int:
    """1 where more is better, else -1."""
    return -1 if registry.metrics.declared(objective).lower_is_better else 1
