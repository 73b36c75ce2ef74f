"""What a worker of an evaluation needs: images, classifiers and defences, each loaded and checked once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maep import artifact, storage
from maep.attacks.bpda import BackwardIdentity
from maep.data import datasets, lists
from maep.data.image_set import ImageSet, Split
from maep.errors import ConfigError, DataError
from maep.evaluate import attacked_sets, baselines
from maep.evaluate.attacked_sets import AttackedSet
from maep.evaluate.config import EvaluateConfig, Threat
from maep.evaluate.measure import DefendedModel, ImageBatch
from maep.evaluate.protocol import presets
from maep.evaluate.protocol.presets import Column, ScheduledAttack, Source, Traits
from maep.evaluate.results import rows
from maep.models.build import load_purifier_artifact
from maep.models.check import check_classifier, check_purifier
from maep.models.classifiers.load import Classifier, load_classifier, structure, weights_sha256
from maep.models.purifier import defend
from maep.models.tiles import for_size

T = TypeVar("T")


@dataclass(frozen=True)
class Defence:
    """A purifier or baseline; `sha256` identifies its artifact or the baseline's name."""

    sha256: str
    module: nn.Module
    traits: Traits
    surrogates: tuple[nn.Module, ...] = ()
    """From images to logits; see `maep.models.robust`."""
    relaxations: tuple[nn.Module, ...] = ()
    """Purifiers with more gradient than the module."""


class FixedDraws(nn.Module):
    """A randomised model with the same draws in every call, as seen by an attacker who knows the masks."""

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


class Context:
    """The parts of one evaluation, each loaded on first use. Workers receive it with everything loaded so far.

    `purifiers` are artifact folders, or modules, by name; the baselines are in `config`.
    """

    def __init__(self, config: EvaluateConfig, purifiers: Mapping[str, str | nn.Module], output: Path) -> None:
        self.config, self.purifiers, self.output = config, dict(purifiers), output
        self._models: dict[str, Any] = {}
        self._attacked: dict[object, Any] = {}

    def __getstate__(self) -> dict[str, object]:
        """Everything loaded except attacked images: each task is sent its own."""
        return {**self.__dict__, "_attacked": {}}

    @property
    def names(self) -> tuple[str, ...]:
        """Every defence of the table: baselines, then purifiers."""
        return (*self.config.baselines, *self.purifiers)

    def part(self, words: Sequence[object], suffix: str) -> Path:
        """The file of an unmerged part of the result, named by `words`."""
        return self.output / "parts" / f"{rows.part_name(words)}.{suffix}"

    @functools.cached_property
    def image_list(self) -> lists.ImageList:
        """The named list, or a whole split (`DATASET-SPLIT`) that has none; the first `num_images` of it."""
        name, data = self.config.images, self.config.data
        split = name.removeprefix(f"{data.name}-")
        if name in lists.names() or split not in get_args(Split):
            return _first(lists.named(name), self.config.num_images)
        whole = datasets.load(data, cast(Split, split))
        every = lists.make(name, data.name, whole.split, tuple(whole.indices.tolist()))
        return _first(every, self.config.num_images)

    @functools.cached_property
    def image_set(self) -> ImageSet:
        """The images of the list, in its order."""
        return lists.pick(datasets.load(self.config.data, self.image_list.split), self.image_list)

    def batch(self, positions: range) -> ImageBatch:
        """The images at `positions` of the list, channels-last: it doubles the speed of small convolutions."""
        images, labels = self.image_set.batch(positions)
        # copied, because PyTorch warns about the read-only array that a worker shares with others
        indices = torch.from_numpy(self.image_set.indices[positions.start : positions.stop].copy())
        return ImageBatch(images.contiguous(memory_format=torch.channels_last), labels, indices)

    @property
    def _two_images(self) -> Tensor:
        """For the check of a model at loading."""
        return self.batch(range(min(2, len(self.image_set)))).images

    def classifier(self, spec: str) -> Classifier:
        """The protected classifier, frozen, in eval mode."""

        def load() -> Classifier:
            loaded = load_classifier(spec, datasets.data_root(self.config.data)).to(memory_format=torch.channels_last)
            count, labels = check_classifier(loaded, f"classifier {spec!r}", self._two_images), self.image_set.labels
            if int(labels.min()) < 0 or int(labels.max()) >= count:
                raise DataError(
                    f"label {int(labels.max())} of {self.image_list.name} is out of range for classifier {spec!r},"
                    f" which knows {count} classes"
                )
            return loaded

        return _once(self._models, f"classifier {spec}", load)

    @property
    def classifier_names(self) -> dict[str, str]:
        """The classifiers' names by spec."""
        return {spec: self.classifier(spec).name for spec in self.config.classifiers}

    def defence(self, name: str) -> Defence:
        """The purifier or baseline of that name."""

        def load() -> Defence:
            if name not in self.purifiers:
                module = baselines.build(name)
                traits = Traits(name, True, bool(module.differentiable), bool(module.randomised))
                return Defence(baselines.sha256(name), module, traits)
            source = self.purifiers[name]
            if isinstance(source, nn.Module):
                own = copy.deepcopy(source).eval().requires_grad_(False)
                sha256 = storage.sha256(f"{weights_sha256(own)} {structure(own)}".encode())
            else:
                saved = artifact.read(source)
                own, sha256 = load_purifier_artifact(saved), saved.sha256
            module = for_size(own, self.image_set.image_shape, self.config.sizes)
            differentiable = bool(getattr(own, "differentiable", True))
            check_purifier(module, f"purifier {name!r}", self._two_images, differentiable)
            surrogates, relaxations = (
                tuple(getattr(own, method)()) if module is own and hasattr(own, method) else ()
                for method in ("surrogates", "relaxations")
            )
            randomised = bool(getattr(own, "randomised", False))
            traits = Traits(name, False, differentiable, randomised, len(surrogates) + len(relaxations))
            return Defence(sha256, module, traits, surrogates, relaxations)

        return _once(self._models, f"defence {name}", load)

    def defended(self, name: str, spec: str, threat: Threat, eot: int | None = None) -> DefendedModel:
        """The classifier behind the defence; under `bpda` the defence passes gradients through unchanged.

        `eot`: passes of a randomised model's gradient; None: as configured.
        """
        defence = self.defence(name)
        model = defend(self.classifier(spec), BackwardIdentity(defence.module) if threat == "bpda" else defence.module)
        draws = self.config.draws
        if threat == "fixed-mask":
            model, draws = FixedDraws(model, self.config.seed).eval(), 1
        return DefendedModel(model, defence.traits.randomised, self.config.eot if eot is None else eot, draws)

    def source_model(self, source: Source) -> nn.Module:
        """The model that the attacks of a kept set are made on."""
        if source.purifier is None:
            return self.classifier(source.classifier)
        if source.surrogate is not None:
            return self.surrogates(source.purifier, source.classifier)[source.surrogate]
        return self.defended(source.purifier, source.classifier, "adaptive").target

    def surrogates(self, name: str, spec: str) -> list[nn.Module]:
        """The models, from images to logits, that an attacker of the defence differentiates instead of the whole.

        They are those that the purifier names, and the classifier behind each of its relaxations.
        """
        defence = self.defence(name)
        return [*defence.surrogates, *(defend(self.classifier(spec), each) for each in defence.relaxations)]

    def columns(self, name: str, spec: str) -> tuple[Column, ...]:
        """The columns of one defence before one classifier, in the order of the table."""
        others = [self.defence(other).traits for other in self.names if other != name]
        return presets.columns(self.config, self.defence(name).traits, spec, others, len(self.image_list))

    def attacked_set(self, source: Source, attack: ScheduledAttack, num_images: int) -> AttackedSet:
        """The set of the first `num_images` of the list, attacked on `source`."""

        def make() -> AttackedSet:
            image_list = _first(self.image_list, num_images)
            whole = image_list is self.image_list
            return AttackedSet(
                classifier_sha256=self.classifier(source.classifier).sha256,
                purifier_sha256=None if source.purifier is None else self.defence(source.purifier).sha256,
                surrogate=source.surrogate,
                images=self.image_set if whole else lists.pick(self.image_set, image_list),
                image_list=image_list,
                config=attack.config,
                seed=self.config.seed + attack.seed,
                cache=attacked_sets.cache_folder(self.config.cache),
            )

        return _once(self._attacked, (source, attack, num_images), make)

    def attacked_images(self, attacked: AttackedSet) -> NDArray[np.uint8]:
        """uint8 [N, H, W, 3]: a finished set, verified when it is first read."""
        return _once(self._attacked, attacked.folder, attacked.read)


def _once(cache: dict[Any, Any], key: object, make: Callable[[], T]) -> T:
    if key not in cache:
        cache[key] = make()
    found: T = cache[key]
    return found


def _first(whole: lists.ImageList, count: int | None) -> lists.ImageList:
    if count is None or count >= len(whole):
        return whole
    return lists.make(f"{whole.name}[:{count}]", whole.dataset, whole.split, whole.indices[:count])


def check(context: Context) -> None:
    """Loads everything and refuses what cannot be evaluated, before any time is spent.

    Raises ConfigError or DataError: unknown names, two classifiers of one name, labels that a classifier does not know,
    and what `maep.models.check` refuses.
    """
    names = list(context.classifier_names.values())
    if len(set(names)) != len(names):
        name = max(names, key=names.count)
        raise ConfigError(f"classifiers: two are called {name!r}, so their rows could not be told apart")
    for name in context.names:
        context.defence(name)
