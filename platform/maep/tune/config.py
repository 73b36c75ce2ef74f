"""What a search is made of: the trial's two phases, the space, what is wanted of a purifier, and the budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from maep.errors import nearest
from maep.train.classifier import ClassifierConfig
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.tune.record import OBJECTIVES, Objective
from maep.tune.search.space import Axis

MAXIMISED: tuple[Objective, ...] = ("clean_accuracy", "oblivious_accuracy", "adaptive_accuracy")
"""The objectives of which more is better; of the others, less."""
NOT_COMPARABLE = ("loss", "mae_loss", "dev_reconstruction", "reconstruction")


@dataclass(frozen=True)
class BudgetConfig:
    """What every trial may spend, the same for all."""

    kind: Literal["samples_seen", "flops", "core_seconds"] = "samples_seen"
    """Images in training steps; floating-point operations of those steps; processor seconds of them (CPU only)."""
    amount: float = 100_000
    """Of one trial that is trained to its end, both phases together."""
    pretrain_share: float = 0.25
    """The share of it that pretraining gets, where there is one. It counts in full for each trial that shares it."""

    def __post_init__(self) -> None:
        """Refuses a budget of nothing."""
        if self.amount <= 0:
            raise ValueError(f"amount: {self.amount:g} must be above 0")
        if not 0 <= self.pretrain_share < 1:
            raise ValueError(f"pretrain_share: {self.pretrain_share:g} must be in [0, 1)")


@dataclass(frozen=True)
class HalvingConfig:
    """Successive halving (`search/halving.py`): of the trials measured at a rung, the best one in `factor` go on."""

    num_rungs: int = 3
    """With the last, at which a trial is done. Each rung is `factor` times as far as the one before."""
    factor: int = 3

    def __post_init__(self) -> None:
        """Refuses halving that stops nothing."""
        if self.num_rungs < 2 or self.factor < 2:
            raise ValueError(f"num_rungs: {self.num_rungs} and factor: {self.factor} must be at least 2")


@dataclass(frozen=True)
class MeasureConfig:
    """How a trial's purifier is measured, on the first `num_images` of `dev`, before `finetune.classifiers[0]`.

    Figures to choose by, from few images; `maep evaluate` measures what is reported.
    """

    num_images: int = 128
    eps: float | None = None
    """Budget of the oblivious attacks; null: `finetune.attacks.eps`."""
    oblivious: tuple[Literal["fgsm", "pgd", "pgd-cw", "apgd-ce"], ...] = ("fgsm", "pgd", "apgd-ce")
    """Made on the bare classifier, once for all trials; an image counts as right if it is so under each of them."""
    steps: int = 20
    adaptive: Literal["pgd", "apgd-ce"] = "apgd-ce"
    """Made through purifier and classifier, for each trial anew."""
    adaptive_eps: float | None = None
    """Budget of the adaptive attack; null: as `eps`."""
    adaptive_steps: int = 20
    eot: int = 10
    """Passes that one gradient of the adaptive attack is averaged over, where the purifier is randomised."""
    adaptive_images: int | None = None
    """The adaptive attack takes the first so many of the images; null: all."""
    latency_passes: int = 30
    """`latency_ms` is the median of so many passes of one image."""

    def __post_init__(self) -> None:
        """Refuses to measure nothing."""
        for key in ("num_images", "steps", "adaptive_steps", "eot", "latency_passes"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1")
        for key in ("eps", "adaptive_eps"):
            if getattr(self, key) is not None and not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be in [0, 1]; 8/255 may be written so")
        if self.adaptive_images is not None and not 1 <= self.adaptive_images <= self.num_images:
            raise ValueError(f"adaptive_images: {self.adaptive_images} must be in 1..num_images ({self.num_images})")


@dataclass(frozen=True)
class TuneConfig:
    """One search."""

    classifiers: tuple[ClassifierConfig, ...] = ()
    """Classifiers that the search trains first; `finetune.classifiers` names them by their `name`."""
    pretrain: PretrainConfig | None = None
    """Pretraining of each trial; null: purifiers start from random weights. Trials that agree on it share it."""
    finetune: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(classifiers=("cifar10_resnet20",)))
    """What trials have in common; `loop.samples` of both follows from the budget."""
    space: dict[str, Axis] = field(default_factory=dict)
    """By short name (`trial_config.NAMES`: mask_ratio, patch_size, width ...) or dotted key of the phases."""
    constraints: tuple[str, ...] = ()
    """Comparisons that settings must hold, of names of the space and of dotted keys: `width % 8 == 0`."""
    fixed: tuple[dict[str, Any], ...] = ()
    """Settings that are tried first, beside those that the searcher chooses: references, and repeats by `seed`."""
    objectives: tuple[Objective, ...] = ("adaptive_accuracy",)
    """One: the best is looked for. Several: the front of those that no other beats in all; the first decides ties.
    latency_ms is a time: of two searches that have it here, each chooses by its own."""
    limits: dict[str, float] = field(default_factory=dict)
    """What the best one must keep: at most of latency_ms and num_parameters, at least of accuracies."""
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    searcher: Literal["tpe", "random", "grid"] = "tpe"
    num_trials: int = 16
    """How many settings are tried, without `fixed`; a space that has fewer is tried whole."""
    generation: int = 8
    """Settings that are chosen, and compared at each rung, together; at least the trials that run at once, or some
    wait. It decides what is chosen, so it does not follow the number of machines."""
    halving: HalvingConfig | None = None
    """null: every trial gets its whole budget."""
    seed: int = 0
    """Of the choices, and of every trial's training unless its settings name another `seed`."""
    cpus_per_trial: float = 1.0
    """Of a trial in one process; where `workers` of a phase names workers, theirs count."""
    gpus_per_trial: float = 0.0
    """The same of GPUs; a share of one lets several trials use it."""
    max_failures: int = 2
    """How often a trial whose process or machine dies is started anew, from its newest checkpoint."""

    @staticmethod
    def expand(values: Any) -> Any:
        """`values` as they are; refuses objectives that cannot be compared, with the reason."""
        names = values.get("objectives", ())
        if not isinstance(names, str | list | tuple):
            raise ValueError(f"objectives: {names!r} is no list: name some of {', '.join(OBJECTIVES)}")
        for name in [names] if isinstance(names, str) else names:
            if name in NOT_COMPARABLE:
                raise ValueError(
                    f"objectives: {name} does not compare across patch sizes and mask ratios (another mask is another"
                    f" task): choose of {', '.join(OBJECTIVES)}"
                )
            if name not in OBJECTIVES:
                raise ValueError(f"objectives: no trial reports {name!r}: {nearest(str(name), OBJECTIVES)}")
        return values

    def __post_init__(self) -> None:
        """Refuses a search for nothing, over nothing or with nothing."""
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives: name at least one of {', '.join(OBJECTIVES)}, none twice")
        if "oblivious_accuracy" in self.objectives and not self.measure.oblivious:
            raise ValueError("objectives: oblivious_accuracy needs measure.oblivious, at least one attack")
        for name in self.limits:
            if name not in OBJECTIVES:
                raise ValueError(f"limits: no trial reports {name!r}: {nearest(name, OBJECTIVES)}")
            if name in MAXIMISED and not 0 <= self.limits[name] <= 1:
                raise ValueError(f"limits.{name}: {self.limits[name]:g} must be a share in [0, 1]")
        if self.pretrain is not None and not self.budget.pretrain_share:
            raise ValueError(
                "budget.pretrain_share: 0 leaves nothing for pretrain: raise it, or leave that section out"
            )
        if not self.space and not self.fixed:
            raise ValueError("space: is empty: name at least one key, for example mask_ratio: {uniform: [0.3, 0.8]}")
        for key in ("num_trials", "generation"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1")
        if self.cpus_per_trial <= 0 or self.gpus_per_trial < 0 or self.max_failures < 0:
            raise ValueError(
                f"cpus_per_trial: {self.cpus_per_trial:g} must be above 0, gpus_per_trial and max_failures not below"
            )
        if self.searcher == "grid":
            endless = [key for key, axis in self.space.items() if axis.values is None]
            if endless:
                raise ValueError(f"space.{endless[0]}: a grid has no end here: give choice or integer, or searcher tpe")


def sign(objective: Objective) -> int:
    """1 where more is better, else -1."""
    return 1 if objective in MAXIMISED else -1
