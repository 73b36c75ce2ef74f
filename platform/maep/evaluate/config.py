"""Evaluations and the promotion gate, as configured: images, classifiers, baselines, budgets and effort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maep import config, registry
from maep.data.config import DataConfig

Threat = Literal[
    "clean", "adaptive", "bpda", "black-box", "fixed-mask", "transfer", "oblivious", "adaptive-steps", "adaptive-eot"
]  # fmt: skip
"""Who attacks what, see docs/threat-models.md, in the order of tables; the last two only draw curves."""
Preset = Literal["quick", "standard", "full"]


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation. Budgets are in units of the image range [0, 1]."""

    data: DataConfig = config.section(lambda: DataConfig(name="cifar10"))
    images: str = config.key("cifar10-test-1000", "Named image list, or a whole split: DATASET-SPLIT.", decides=True)
    num_images: int | None = config.key(None, "Number of images, from the first; null: all of the list.", decides=True)
    classifiers: tuple[str, ...] = config.key(
        ("cifar10_resnet20",), "Protected classifiers, as specs (maep.models.classifiers.load).", decides=True
    )
    baselines: tuple[str, ...] = config.key(
        ("none", "jpeg-q50", "jpeg-q75", "blur", "median"),
        "Defences without weights, evaluated in the same tables.",
        decides=True,
        choices=registry.baselines.names,
    )
    preset: Preset = config.key("quick", "Set of attacks (docs/threat-models.md).", decides=True)
    eps: tuple[float, ...] = config.key((2 / 255, 8 / 255), "Budgets of the adaptive and BPDA attacks.", decides=True)
    curve_eps: tuple[float, ...] = config.key(
        (0.5 / 255, 1 / 255, 4 / 255),
        "standard and full: further budgets of adaptive attacks, for the curve over eps.",
        decides=True,
    )
    oblivious_eps: float = config.key(
        8 / 255, "Budget of attacks on another model: the bare classifier, another purifier.", decides=True
    )
    num_adaptive: int | None = config.key(
        None, "Number of images for every threat model but clean and oblivious; null: all.", decides=True
    )
    num_probes: int = config.key(64, "Number of images in the sanity battery.", decides=True)
    eot: int = config.key(20, "Forward passes averaged in one gradient of a randomised purifier.", decides=True)
    draws: int = config.key(10, "Fresh draws by which each image of a randomised purifier is judged.", decides=True)
    sizes: Literal["tiles", "interpolate"] = config.key(
        "tiles", "How purifiers handle images of another size than they were trained on.", decides=True
    )
    seed: int = config.key(0, "Seed of attacks and draws.", decides=True)
    batch_size: int = config.key(64, "Images in one forward pass.", decides=True)
    shard_size: int = config.key(128, "Images of one task, which is finished or repeated as a whole.", decides=True)
    num_workers: int = config.key(
        1, "1: this process; more: Ray workers of one thread each. Results do not depend on it.", decides=False
    )
    address: str | None = config.key(
        None,
        "Ray cluster for the workers, HOST:PORT; null: the one this process is in, else a local one.",
        decides=False,
    )
    cache: str | None = config.key(
        None, "Folder of the attacked images; null: $MAEP_CACHE, else ~/.cache/maep.", decides=False
    )

    def __post_init__(self) -> None:
        """Raises ValueError for budgets outside (0, 1], repeated names and counts below 1."""
        for key in ("eps", "curve_eps", "oblivious_eps"):
            value = getattr(self, key)
            budgets = value if isinstance(value, tuple) else (value,)
            if (not budgets and key == "eps") or any(not 0 < budget <= 1 for budget in budgets):
                raise ValueError(f"{key}: budgets must be in (0, 1]; 8/255 may be written so")
        if self.oblivious_eps * 255 < 1 - 1e-4:
            raise ValueError(
                f"oblivious_eps: {self.oblivious_eps} must be at least 1/255: these images are kept in 8 bits"
            )
        for key in ("eps", "classifiers", "baselines"):
            names = getattr(self, key)
            if len(set(names)) != len(names):
                raise ValueError(f"{key}: each may be named only once")
        registry.baselines.require(self.baselines, "baselines")
        if not self.classifiers:
            raise ValueError("classifiers: name at least one, such as cifar10_resnet20")
        for key in (
            "num_images", "num_adaptive", "num_probes", "eot", "draws", "batch_size", "shard_size", "num_workers"
        ):  # fmt: skip
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: {value} must be at least 1")


@dataclass(frozen=True)
class GateConfig:
    """What a champion must pass. Accuracies, floors and margins are shares in [0, 1]."""

    images: str = config.key("cifar10-dev-500", "Named image list, of `dev`.", decides=True)
    num_images: int | None = config.key(None, "Number of images, from the first; null: all of the list.", decides=True)
    clean_floor: float = config.key(0.85, "Lowest clean accuracy.", decides=True)
    oblivious_eps: float = config.key(
        8 / 255, "Budget of the oblivious worst case, which must beat the champion's at p < `alpha`.", decides=True
    )
    adaptive_eps: tuple[float, ...] = config.key(
        (1 / 255, 2 / 255, 4 / 255),
        """Budgets at which the adaptive worst case must not be worse than the champion's: neither by more than
        `adaptive_margin`, nor by any amount at p < `alpha`.""",
        decides=True,
    )
    adaptive_margin: float = config.key(0.02, "Largest loss of adaptive accuracy that passes.", decides=True)
    alpha: float = config.key(0.05, "Significance level of the paired tests.", decides=True)
    over_baselines: tuple[str, ...] = config.key(
        ("none", "jpeg-q50"),
        "Baselines that a first champion must beat in the oblivious worst case, at p < `alpha`.",
        decides=True,
        choices=registry.baselines.names,
    )

    def __post_init__(self) -> None:
        """Raises ValueError for shares and budgets outside [0, 1]."""
        for key, budgets in (("oblivious_eps", (self.oblivious_eps,)), ("adaptive_eps", self.adaptive_eps)):
            if not budgets or any(not 0 < budget <= 1 for budget in budgets):
                raise ValueError(f"{key}: budgets must be in (0, 1]; 8/255 may be written so")
        if self.num_images is not None and self.num_images < 1:
            raise ValueError(f"num_images: {self.num_images} must be at least 1, or null for the whole list")
        registry.baselines.require(self.over_baselines, "over_baselines")
        for key in ("clean_floor", "adaptive_margin", "alpha"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be a share in [0, 1]")


def eps_label(eps: float, norm: str = "Linf") -> str:
    """A budget as it is written: 8/255 or, off the 8-bit grid, 0.5/255; of another norm, that before it: L2 0.5."""
    if norm != "Linf":
        return f"{norm} {eps:g}"
    levels = eps * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{levels:.4g}/255"
