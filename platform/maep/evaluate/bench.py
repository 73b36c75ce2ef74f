"""What a worker needs at hand: the images, the classifiers and the defences, each loaded once and checked."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maep import artifact
from maep.attacks.bpda import BackwardIdentity
from maep.attacks.config import AttackConfig
from maep.data import adversarial, datasets, lists
from maep.data.image_set import ImageSet
from maep.errors import ConfigError, DataError
from maep.evaluate import baselines
from maep.evaluate.config import EvaluateConfig, Threat
from maep.models.build import load_purifier_artifact
from maep.models.classifiers import Classifier, load_classifier
from maep.models.purifier import defend


@dataclass(frozen=True)
class Setup:
    """One evaluation as it is sent to workers: `purifiers` are (name, artifact folder), baselines are in `config`."""

    config: EvaluateConfig
    purifiers: tuple[tuple[str, str], ...]
    output: Path

    @property
    def names(self) -> tuple[str, ...]:
        """Every defence of the table: baselines, then purifiers."""
        return (*self.config.baselines, *(name for name, _ in self.purifiers))


@dataclass(frozen=True)
class Defence:
    """A purifier or baseline; `sha256` is its artifact's, or stands for the baseline's name."""

    name: str
    sha256: str
    module: nn.Module
    differentiable: bool
    randomised: bool


class Expectation(nn.Module):
    """Mean logits of `passes` passes through a randomised model (EOT, Athalye et al. 2018, arXiv 1707.07397)."""

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model = model
        self.passes = passes

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> logits [B, classes]."""
        return torch.stack([self.model(images) for _ in range(self.passes)]).mean(dim=0)


class Bench:
    """The parts of one evaluation, loaded on first use and kept: one per process."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.config = setup.config
        self._classifiers: dict[str, Classifier] = {}
        self._defences: dict[str, Defence] = {}
        self._attacked: dict[tuple[str, AttackConfig], NDArray[np.uint8]] = {}

    @functools.cached_property
    def image_list(self) -> lists.ImageList:
        """The named list, or its first `num_images`."""
        whole = lists.named(self.config.images)
        count = self.config.num_images
        if count is None or count >= len(whole):
            return whole
        return lists.make(f"{whole.name}[:{count}]", whole.dataset, whole.split, whole.indices[:count])

    @functools.cached_property
    def image_set(self) -> ImageSet:
        """The images of the list, in its order."""
        return lists.pick(datasets.load(self.config.data, self.image_list.split), self.image_list)

    def batch(self, positions: range) -> tuple[Tensor, Tensor]:
        """(float32 [B, 3, H, W] in [0, 1], int64 [B]): images and labels at `positions` of the list."""
        images, labels = self.image_set.batch(positions)
        return fast(images), labels

    def classifier(self, spec: str) -> Classifier:
        """The protected classifier, frozen, in eval mode."""
        if spec not in self._classifiers:
            loaded = load_classifier(spec, datasets.data_root(self.config.data))
            self._classifiers[spec] = loaded.to(memory_format=torch.channels_last)
        return self._classifiers[spec]

    def defence(self, name: str) -> Defence:
        """The purifier or baseline of that name."""
        if name not in self._defences:
            folders = dict(self.setup.purifiers)
            if name in folders:
                source = artifact.read(folders[name])
                module = load_purifier_artifact(source).to(memory_format=torch.channels_last)
                made = Defence(name, source.sha256, module, True, bool(getattr(module, "randomised", False)))
            else:
                module = baselines.build(name)
                made = Defence(
                    name, baselines.sha256(name), module, bool(module.differentiable), bool(module.randomised)
                )
            self._defences[name] = made
        return self._defences[name]

    def defended(self, name: str, spec: str, threat: Threat) -> nn.Module:
        """The model that answers under `threat`: classifier behind defence, identity backwards under `bpda`."""
        module = self.defence(name).module
        return defend(self.classifier(spec), BackwardIdentity(module) if threat == "bpda" else module)

    def recipe(self, spec: str, attack: AttackConfig) -> dict[str, object]:
        """What decides the oblivious images of this classifier and attack."""
        sha256 = self.classifier(spec).sha256
        return adversarial.recipe(sha256, self.image_set, self.image_list, attack, self.config.seed)

    def attacked_folder(self, spec: str, attack: AttackConfig) -> Path:
        """Where these oblivious images are kept."""
        return adversarial.set_folder(adversarial.cache_folder(self.config.cache), self.recipe(spec, attack))

    def attacked(self, spec: str, attack: AttackConfig, positions: range) -> Tensor:
        """float32 [B, 3, H, W] in [0, 1]: oblivious images, verified when they are first read."""
        key = (spec, attack)
        if key not in self._attacked:
            self._attacked[key] = adversarial.read(self.attacked_folder(*key), self.recipe(*key))
        return fast(adversarial.as_tensor(self._attacked[key][positions.start : positions.stop]))


def fast(images: Tensor) -> Tensor:
    """The same images in channels-last layout, in which small convolutions run about twice as fast on a CPU."""
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def check(bench: Bench) -> None:
    """Loads everything once and refuses what cannot be evaluated, in one line, before any time is spent.

    Raises ConfigError or DataError: unknown names, two classifiers of one name, a classifier that returns
    probabilities or NaN, labels that it does not know, a purifier that does not keep shape and range.
    """
    image_set = bench.image_set
    probe = range(min(bench.config.num_probes, len(image_set)))
    images, _ = bench.batch(probe)
    names = [bench.classifier(spec).name for spec in bench.config.classifiers]
    if len(set(names)) != len(names):
        raise ConfigError(
            f"classifiers: two are called {max(names, key=names.count)!r}: their rows could not be told apart"
        )
    for spec in bench.config.classifiers:
        _check_classifier(bench, spec, images)
    for name in bench.setup.names:
        _check_defence(bench, name, images)


def _check_defence(bench: Bench, name: str, images: Tensor) -> None:
    defence = bench.defence(name)
    try:
        purified = defence.module(images)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"purifier {name!r} does not take images of shape {list(images.shape)}: {reason}") from None
    if purified.shape != images.shape:
        shapes = f"{list(images.shape)} into {list(purified.shape)}"
        raise ConfigError(f"purifier {name!r} turns {shapes}: it must keep the shape")
    try:
        check_images(purified)
    except DataError as error:
        raise ConfigError(f"purifier {name!r}: {error}: its last step must be clamp(0, 1)") from None


def check_images(images: Tensor) -> None:
    """Raises DataError unless `images` is a float tensor [B, 3, H, W] with every value in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise DataError(f"images are {images.dtype} {list(images.shape)}: float [B, 3, H, W] in [0, 1] is needed")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):  # NaN fails both
        seen = f"{float(images.min()):.4g} to {float(images.max()):.4g}"
        raise DataError(f"images have values of {seen}: all must be in [0, 1]")


def _check_classifier(bench: Bench, spec: str, images: Tensor) -> None:
    classifier = bench.classifier(spec)
    try:
        logits = classifier(images)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"classifier {spec!r} does not take images of shape {list(images.shape)}: {reason}") from None
    if logits.ndim != 2 or len(logits) != len(images):
        raise ConfigError(f"classifier {spec!r} returns {list(logits.shape)}: logits [batch, classes] are needed")
    if not torch.isfinite(logits).all():
        raise ConfigError(f"classifier {spec!r} returns NaN or infinity on clean images: its weights are damaged")
    if looks_like_probabilities(logits):
        raise ConfigError(f"classifier {spec!r} returns probabilities: return logits, without the last softmax")
    highest = int(bench.image_set.labels.max())
    if int(bench.image_set.labels.min()) < 0 or highest >= logits.shape[1]:
        raise DataError(
            f"label {highest} of {bench.image_list.name} is out of range for classifier {spec!r},"
            f" which knows {logits.shape[1]} classes"
        )


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether every row is non-negative and sums to one; bool for [B, classes]."""
    sums = logits.sum(dim=1)
    return bool((logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
