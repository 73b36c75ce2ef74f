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
from maep.data import datasets, lists
from maep.data.image_set import ImageSet
from maep.errors import ConfigError, DataError
from maep.evaluate import attacked_sets, baselines
from maep.evaluate.attacked_sets import AttackedSet
from maep.evaluate.config import EvaluateConfig, Threat
from maep.evaluate.measure import Expectation
from maep.evaluate.protocol import presets
from maep.evaluate.protocol.presets import Column, Source, Step, Traits
from maep.models.build import load_purifier_artifact
from maep.models.classifiers.load import Classifier, load_classifier
from maep.models.purifier import defend
from maep.models.tiles import for_size


@dataclass(frozen=True)
class Setup:
    """One evaluation: `purifiers` are (name, artifact folder), baselines are in `config`."""

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

    sha256: str
    module: nn.Module
    traits: Traits


class FixedDraws(nn.Module):
    """A randomised model that draws the same in every call: what an attacker meets who knows the masks."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> logits [B, classes]."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            logits: Tensor = self.model(images)
            return logits


class Bench:
    """The parts of one evaluation, loaded on first use and kept. It can be sent to workers, with what is loaded."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.config = setup.config
        self._classifiers: dict[str, Classifier] = {}
        self._defences: dict[str, Defence] = {}
        self._sets: dict[tuple[Source, Step, int], AttackedSet] = {}
        self._kept: dict[Path, NDArray[np.uint8]] = {}

    @functools.cached_property
    def image_list(self) -> lists.ImageList:
        """The named list, or its first `num_images`."""
        return _first(lists.named(self.config.images), self.config.num_images)

    @functools.cached_property
    def image_set(self) -> ImageSet:
        """The images of the list, in its order."""
        return lists.pick(datasets.load(self.config.data, self.image_list.split), self.image_list)

    def batch(self, positions: range) -> tuple[Tensor, Tensor]:
        """(float32 [B, 3, H, W] in [0, 1], int64 [B]): images and labels at `positions` of the list."""
        images, labels = self.image_set.batch(positions)
        return fast(images), labels

    def indices(self, positions: range) -> Tensor:
        """int64 [B]: official indices of the images at `positions` of the list."""
        # a worker shares the array with others and may only read it, which PyTorch warns of
        return torch.from_numpy(self.image_set.indices[positions.start : positions.stop].copy())

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
                own = load_purifier_artifact(source)
                module = for_size(own, self.image_set.image_shape, self.config.sizes)
                traits = Traits(name, False, True, bool(getattr(own, "randomised", False)))
                made = Defence(source.sha256, module, traits)
            else:
                module = baselines.build(name)
                traits = Traits(name, True, bool(module.differentiable), bool(module.randomised))
                made = Defence(baselines.sha256(name), module, traits)
            self._defences[name] = made
        return self._defences[name]

    def defended(self, name: str, spec: str, threat: Threat) -> nn.Module:
        """The model that answers under `threat`: classifier behind defence, identity backwards under `bpda`."""
        module = self.defence(name).module
        model = defend(self.classifier(spec), BackwardIdentity(module) if threat == "bpda" else module)
        return FixedDraws(model, self.config.seed).eval() if threat == "fixed-mask" else model

    def columns(self, name: str, spec: str) -> tuple[Column, ...]:
        """What is measured of one defence before one classifier, in the order of the table."""
        others = [self.defence(other).traits for other in self.setup.names if other != name]
        return presets.columns(self.config, self.defence(name).traits, spec, others, len(self.image_list))

    def attacked_set(self, source: Source, step: Step, num_images: int) -> AttackedSet:
        """The kept set of images attacked on `source`, the first `num_images` of the list."""
        key = (source, step, num_images)
        if key not in self._sets:
            image_list = _first(self.image_list, num_images)
            whole = image_list is self.image_list
            self._sets[key] = AttackedSet(
                classifier_sha256=self.classifier(source.classifier).sha256,
                purifier_sha256=None if source.purifier is None else self.defence(source.purifier).sha256,
                images=self.image_set if whole else lists.pick(self.image_set, image_list),
                image_list=image_list,
                config=step.config,
                seed=self.config.seed + step.seed,
                cache=attacked_sets.cache_folder(self.config.cache),
            )
        return self._sets[key]

    def kept(self, attacked: AttackedSet) -> NDArray[np.uint8]:
        """uint8 [N, H, W, 3]: a finished set, verified when it is first read."""
        if attacked.folder not in self._kept:
            self._kept[attacked.folder] = attacked.read()
        return self._kept[attacked.folder]

    def __getstate__(self) -> dict[str, object]:
        """For workers: everything that is loaded, but the attacked images, of which each task is given its share."""
        return {**self.__dict__, "_sets": {}, "_kept": {}}

    def source_model(self, source: Source) -> nn.Module:
        """What images are attacked on; a randomised purifier through the mean of `eot` passes."""
        if source.purifier is None:
            return self.classifier(source.classifier)
        model = self.defended(source.purifier, source.classifier, "adaptive")
        randomised = self.defence(source.purifier).traits.randomised
        return Expectation(model, self.config.eot) if randomised else model


def _first(whole: lists.ImageList, count: int | None) -> lists.ImageList:
    if count is None or count >= len(whole):
        return whole
    return lists.make(f"{whole.name}[:{count}]", whole.dataset, whole.split, whole.indices[:count])


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
