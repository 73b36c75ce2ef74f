"""What an evaluation is made of: images, classifiers, baselines, budgets and effort."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from maep import config
from maep.attacks.config import AttackConfig
from maep.data.datasets import DataConfig

Threat = Literal["clean", "oblivious", "bpda", "adaptive"]
Baseline = Literal["none", "jpeg-q50", "jpeg-q75", "blur", "median"]
NORM = "Linf"


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation. Budgets are in units of the image range [0, 1]; figures depend on every key but the last two.

    images         a named image list; `num_images` cuts it to its first so many
    classifiers    specs of the protected classifiers (maep.models.classifiers)
    baselines      defences without weights that stand in the same table
    eps            budgets of the adaptive (and bpda) attacks
    oblivious_eps  budget of the attacks on the bare classifier
    num_adaptive   adaptive and bpda attacks take the first so many images; None: all of them
    num_probes     so many images go through the sanity battery
    eot            passes that one gradient of a randomised purifier is averaged over
    batch_size     images in a shard: what is attacked together and finished or repeated as one
    num_workers    processes of one thread each; no figure depends on it
    cache          folder of the attacked images; None: $MAEP_CACHE, else ~/.cache/maep
    """

    data: DataConfig = field(default_factory=lambda: DataConfig(name="cifar10"))
    images: str = "cifar10-test-1000"
    num_images: int | None = None
    classifiers: tuple[str, ...] = ("cifar10_resnet20",)
    baselines: tuple[Baseline, ...] = ("none", "jpeg-q50", "jpeg-q75", "blur", "median")
    preset: Literal["quick"] = "quick"
    eps: tuple[float, ...] = (2 / 255, 8 / 255)
    oblivious_eps: float = 8 / 255
    num_adaptive: int | None = None
    num_probes: int = 64
    eot: int = 10
    seed: int = 0
    batch_size: int = 100
    num_workers: int = 1
    cache: str | None = None

    def __post_init__(self) -> None:
        """Refuses budgets outside (0, 1], repeated names and counts below 1."""
        for key, budgets in (("eps", self.eps), ("oblivious_eps", (self.oblivious_eps,))):
            if not budgets or any(not 0 < budget <= 1 for budget in budgets):
                raise ValueError(f"{key}: budgets must be in (0, 1]; 8/255 may be written so")
        for key, names in (("eps", self.eps), ("classifiers", self.classifiers), ("baselines", self.baselines)):
            if len(set(names)) != len(names):
                raise ValueError(f"{key}: each may be named only once")
        if not self.classifiers:
            raise ValueError("classifiers: name at least one, such as cifar10_resnet20")
        for key in ("num_images", "num_adaptive", "num_probes", "eot", "batch_size", "num_workers"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: {value} must be at least 1")


def deciding(settings: EvaluateConfig) -> dict[str, Any]:
    """The settings that decide figures. Not the classifiers' specs, which may be paths: what they are stands beside."""
    values = config.to_dict(settings)
    for key in ("num_workers", "cache", "classifiers"):
        del values[key]
    del values["data"]["root"]
    return values


def oblivious_attacks(config: EvaluateConfig) -> tuple[AttackConfig, ...]:
    """Attacks on the bare classifier, full budget: the worst case over them is the oblivious figure."""
    eps = config.oblivious_eps
    return AttackConfig("fgsm", eps, 1), AttackConfig("pgd", eps, 20), AttackConfig("apgd-ce", eps, 20)


def adaptive_attacks(config: EvaluateConfig, eps: float) -> tuple[AttackConfig, ...]:
    """The cascade of attacks through the purifier: each takes the images that those before it did not break."""
    del config  # the preset will choose here
    return AttackConfig("pgd", eps, 20), AttackConfig("apgd-ce", eps, 50)


def eps_label(eps: float) -> str:
    """A budget as it is written: 8/255 or, off the 8-bit grid, a number."""
    levels = eps * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{levels:.4g}/255"
