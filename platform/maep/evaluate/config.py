"""What an evaluation is made of: images, classifiers, baselines, budgets and effort."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from maep import config, registry
from maep.data.config import DataConfig

Threat = Literal[
    "clean", "adaptive", "bpda", "black-box", "fixed-mask", "transfer", "oblivious", "adaptive-steps", "adaptive-eot"
]  # fmt: skip
"""Who attacks what, see docs/threat-models.md, in the order of tables; the last two only draw curves."""
Preset = Literal["quick", "standard", "full"]


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation. Budgets are in units of the image range [0, 1]; figures depend on every key but the last three.

    images         a named image list; `num_images` cuts it to its first so many
    classifiers    specs of the protected classifiers (maep.models.classifiers.load)
    baselines      defences without weights that stand in the same table
    preset         which attacks are made (maep.evaluate.protocol.presets)
    eps            budgets of the adaptive (and bpda) attacks
    curve_eps      further budgets, whose adaptive figures draw the curve over eps (`standard` and `full`)
    oblivious_eps  budget of the attacks on other models than the defended one: the bare classifier, other purifiers
    num_adaptive   every threat model but `clean` and `oblivious` takes the first so many images; None: all of them
    num_probes     so many images go through the sanity battery
    eot            passes that one gradient of a randomised purifier is averaged over
    draws          fresh draws that each image of a randomised purifier is judged by
    sizes          how a purifier takes images of another size than it was trained on
    batch_size     images that go through a model together
    shard_size     images of one task: what is finished or repeated as one
    num_workers    1: this process; more: Ray workers of one thread each. No figure depends on it
    address        a Ray cluster for them, HOST:PORT; None: a local one, or the one that this process is in
    cache          folder of the attacked images; None: $MAEP_CACHE, else ~/.cache/maep
    """

    data: DataConfig = field(default_factory=lambda: DataConfig(name="cifar10"))
    images: str = "cifar10-test-1000"
    num_images: int | None = None
    classifiers: tuple[str, ...] = ("cifar10_resnet20",)
    baselines: tuple[str, ...] = ("none", "jpeg-q50", "jpeg-q75", "blur", "median")
    preset: Preset = "quick"
    eps: tuple[float, ...] = (2 / 255, 8 / 255)
    curve_eps: tuple[float, ...] = (0.5 / 255, 1 / 255, 4 / 255)
    oblivious_eps: float = 8 / 255
    num_adaptive: int | None = None
    num_probes: int = 64
    eot: int = 20
    draws: int = 10
    sizes: Literal["tiles", "interpolate"] = "tiles"
    seed: int = 0
    batch_size: int = 64
    shard_size: int = 128
    num_workers: int = 1
    address: str | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        """Refuses budgets outside (0, 1], repeated names and counts below 1."""
        for key in ("eps", "curve_eps", "oblivious_eps"):
            value = getattr(self, key)
            budgets = value if isinstance(value, tuple) else (value,)
            if (not budgets and key == "eps") or any(not 0 < budget <= 1 for budget in budgets):
                raise ValueError(f"{key}: budgets must be in (0, 1]; 8/255 may be written so")
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


def deciding(settings: EvaluateConfig) -> dict[str, Any]:
    """The settings that decide figures. Not the classifiers' specs, which may be paths: what they are stands beside."""
    values = config.to_dict(settings)
    for key in ("num_workers", "address", "cache", "classifiers"):
        del values[key]
    values["data"] = config.deciding(settings.data)
    return values


def eps_label(eps: float, norm: str = "Linf") -> str:
    """A budget as it is written: 8/255 or, off the 8-bit grid, 0.5/255; of another norm, that before it: L2 0.5."""
    if norm != "Linf":
        return f"{norm} {eps:g}"
    levels = eps * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{levels:.4g}/255"
