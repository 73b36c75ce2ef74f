"""Configuration of training: a classifier, a masked autoencoder or a purifier. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from maep import config, registry
from maep.data.config import DataConfig, LoaderConfig
from maep.models.config import ClassifierFamily, LoraConfig, MaeConfig, check_classifier
from maep.train.attack_mixture import AttackMixConfig
from maep.train.loop.config import LoopConfig, WorkersConfig
from maep.train.loss_config import LossConfig, TermConfig

__all__ = [
    "ClassifierConfig",
    "FinetuneConfig",
    "LoopConfig",
    "LossConfig",
    "PretrainConfig",
    "TermConfig",
    "ValidationConfig",
    "WorkersConfig",
]


@dataclass(frozen=True)
class ValidationConfig:
    """Validation of checkpoints on `dev` images, beside the training (maep.train.validation)."""

    every_checkpoint: bool = config.key(
        False, "Validate checkpoints; one that is still waiting when the next arrives is skipped.", decides=False
    )
    num_images: int = config.key(128, "Number of images, from the start of `dev`.", decides=False)
    eps: float | None = config.key(
        None, "Budget of the attacks, in [0, 1]; null: that of the training, `attacks.eps`.", decides=False
    )
    steps: int = config.key(
        20, "Steps of PGD, on the bare classifier (made once) and through the purifier.", decides=False
    )
    adaptive: bool = config.key(
        True, "Also attack each checkpoint through the purifier; this takes nearly all of the time.", decides=False
    )
    eot: int = config.key(
        10, "Forward passes averaged in one gradient of the attack on a randomised purifier.", decides=False
    )
    draws: int = config.key(
        10, "Forward passes whose majority is the prediction of a randomised purifier.", decides=False
    )
    num_cpus: float = config.key(
        0.0, "Ray's logical CPUs of the task; it runs at low priority, so 0 does not slow the workers.", decides=False
    )
    deadline_s: float = config.key(
        600.0, "Seconds that the end of the run waits for a running validation.", decides=False
    )

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        for key in ("num_images", "steps", "eot", "draws"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1")
        if self.eps is not None and not 0 <= self.eps <= 1:
            raise ValueError(f"eps: {self.eps} must be in [0, 1], for example 8/255")
        if not (self.num_cpus >= 0 and self.deadline_s >= 0):
            raise ValueError("num_cpus and deadline_s must not be negative")


def _check_best(keep_best: str | None, validation: ValidationConfig, *metrics: str) -> None:
    """Raises ValueError for a best checkpoint by a metric that is never measured."""
    if keep_best is None:
        return
    if not validation.every_checkpoint:
        raise ValueError(f"loop.keep_best: {keep_best} is not measured: set validation.every_checkpoint true")
    if keep_best.removeprefix("-") not in metrics:
        raise ValueError(f"loop.keep_best: {keep_best} is not measured: choose one of {', '.join(metrics)}")


@dataclass(frozen=True)
class ClassifierConfig:
    """A classifier to protect, trained from scratch with cross-entropy."""

    name: str = config.key("classifier", "Name in results and tables.", decides=True)
    data: DataConfig = config.section(DataConfig)
    family: ClassifierFamily = config.key("resnet", "resnet: a CIFAR ResNet; vgg: a thin VGG.", decides=True)
    depth: int = config.key(20, "Layers: 6n + 2 for resnet, 3n + 2 for vgg.", decides=True)
    width: int = config.key(16, "Channels of the first convolution.", decides=True)
    label_smoothing: float = config.key(
        0.0,
        "Share in [0, 1) of the target spread over all classes (Szegedy et al. 2016, arXiv 1512.00567, section 7).",
        decides=True,
    )
    loop: LoopConfig = config.section(LoopConfig)
    loader: LoaderConfig = config.section(LoaderConfig)
    workers: WorkersConfig = config.section(WorkersConfig)

    def __post_init__(self) -> None:
        """Raises ValueError for shapes that the family cannot have."""
        check_classifier(self.family, self.depth, self.width)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: {self.label_smoothing} must be in [0, 1)")
        if self.loop.keep_best is not None:
            raise ValueError(f"loop.keep_best: {self.loop.keep_best}: a classifier is not validated: leave it out")


@dataclass(frozen=True)
class PretrainConfig:
    """MAE pretraining: mean squared error on the hidden patches."""

    data: DataConfig = config.section(DataConfig)
    model: MaeConfig = config.section(MaeConfig)
    init: str | None = config.key(
        None,
        "Artifact of an autoencoder to start from, such as one that `maep convert` wrote; null: random weights.",
        decides=True,
    )
    mask_ratio: float = config.key(0.75, "Share in (0, 1) of the patches that are hidden.", decides=True)
    loop: LoopConfig = config.section(LoopConfig)
    loader: LoaderConfig = config.section(LoaderConfig)
    validation: ValidationConfig = config.section(ValidationConfig)
    workers: WorkersConfig = config.section(WorkersConfig)

    def __post_init__(self) -> None:
        """Raises ValueError for a ratio that hides nothing or everything."""
        num_patches = self.model.grid[0] * self.model.grid[1]
        if not 0 < self.mask_ratio < 1 or int(num_patches * (1 - self.mask_ratio)) in (0, num_patches):
            raise ValueError(
                f"mask_ratio: {self.mask_ratio} hides none or all of the {num_patches} patches: choose one in between"
            )
        _check_best(self.loop.keep_best, self.validation, "dev_reconstruction")


@dataclass(frozen=True)
class FinetuneConfig:
    """Purification: attacked image in, clean image out."""

    data: DataConfig = config.section(DataConfig)
    model: Any = config.named_section(registry.families, "purifier", "The purifier; its keys are those of its family.")
    init: str | None = config.key(
        None,
        "Artifact of a pretrained autoencoder, or of a purifier, to start from; null: random weights.",
        decides=True,
    )
    lora: LoraConfig | None = config.key(
        None,
        "Adapters beside the frozen weights of `init`; null: all weights are trained.",
        decides=True,
    )
    part: Literal["all", "encoder", "decoder"] = config.key(
        "all", "Which weights of a robust purifier are trained; the others stay as they are.", decides=True
    )
    true_verdicts: float | None = config.key(
        None,
        """Share in [0, 1] of the images whose verdict is the true class, and else a random one, while the decoder of a
        robust purifier is trained alone; null: the verdict is the encoder's.""",
        decides=True,
    )
    classifiers: tuple[str, ...] = config.key(
        (), "Classifiers to attack, as specs (maep.models.classifiers.load); at least one.", decides=True
    )
    classifier_shares: tuple[float, ...] = config.key(
        (), "Relative frequency with which each is attacked; empty: all equally often.", decides=True
    )
    attacks: AttackMixConfig = config.section(AttackMixConfig)
    loss: LossConfig = config.section(LossConfig)
    noise: float = config.key(
        16 / 255,
        """Largest standard deviation of the Gaussian noise on the attacked image, in units of the image range; each
        image draws its own up to this.""",
        decides=True,
    )
    noise_share: float = config.key(0.7, "Share in [0, 1] of the images that get noise.", decides=True)
    loop: LoopConfig = config.section(LoopConfig)
    loader: LoaderConfig = config.section(LoaderConfig)
    validation: ValidationConfig = config.section(ValidationConfig)
    workers: WorkersConfig = config.section(WorkersConfig)

    def __post_init__(self) -> None:
        """Raises ValueError for an objective without a classifier to attack, and for keys that the model ignores."""
        if not self.classifiers:
            raise ValueError("classifiers: name at least one, for example [cifar10_resnet20]")
        if self.classifier_shares and len(self.classifier_shares) != len(self.classifiers):
            raise ValueError("classifier_shares: give one for each of classifiers, or none")
        if min(self.classifier_shares, default=0) < 0 or max(self.classifier_shares, default=1) == 0:
            raise ValueError("classifier_shares: none may be negative, and one must be above 0")
        for key in ("noise", "noise_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be in [0, 1], for example 8/255")
        self._check_robust()
        if getattr(self.model, "mae", None) is None:
            if "masked" in self.loss.terms and self.loss.terms["masked"].weight > 0:
                raise ValueError(f"loss.masked: {self.model.name} has no autoencoder to mask")
            if self.lora is not None:
                raise ValueError(f"lora: {self.model.name} has no blocks to adapt")
        if self.lora is not None and self.init is None:
            raise ValueError("lora: adapters need trained weights: give init, an artifact")
        robust = ["dev_robust"] if self.validation.adaptive else []
        if registry.families.declared(self.model.name).head:
            robust += ["dev_head_clean", "dev_head_fgsm", "dev_head_robust"]
        metrics = ("dev_reconstruction", "dev_clean", "dev_oblivious", *robust)
        _check_best(self.loop.keep_best, self.validation, *metrics)

    def _check_robust(self) -> None:
        """Raises ValueError for keys of a robust purifier where the model is none, or that do not fit each other."""
        has_head = registry.families.declared(self.model.name).head
        head = self.loss.terms.get("head")
        if not has_head and (self.part != "all" or self.true_verdicts is not None or (head and head.weight)):
            raise ValueError(f"part, true_verdicts and loss.head need a family with a head, not {self.model.name}")
        if self.true_verdicts is not None and not (self.part == "decoder" and 0 <= self.true_verdicts <= 1):
            raise ValueError(f"true_verdicts: {self.true_verdicts} must be in [0, 1], with part: decoder")
        if self.part == "decoder" and head and head.weight:
            raise ValueError("loss.head trains the encoder: set part to encoder or all")
