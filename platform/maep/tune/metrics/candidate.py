"""A trial's purifier on a few `dev` images, never on `test` or by its own loss: what every search metric measures."""

from __future__ import annotations

import functools
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from maep import artifact, registry
from maep.attacks.config import AttackConfig
from maep.data.datasets import data_root, load
from maep.data.image_set import ImageSet
from maep.evaluate.measure import DefendedModel
from maep.models.build import build_model, load_weights
from maep.models.classifiers.load import Classifier, load_classifier
from maep.models.purifier import defend
from maep.train.config import FinetuneConfig
from maep.tune.config import MeasureConfig

ALWAYS = {"clean_accuracy", "num_parameters"}
"""Metrics that are measured even where the search does not ask for them."""


@dataclass(frozen=True)
class Candidate:
    """A trial's purifier, frozen and in eval mode, with the images, classifier and budgets that it is measured with.

    These are the search's (`common`), not those of the trial's training: otherwise the trial trained against the
    weakest attack would look best.
    """

    purifier: nn.Module
    classifier: Classifier
    images: ImageSet
    """The first `how.num_images` of `dev`."""
    how: MeasureConfig
    common: FinetuneConfig
    seed: int

    @functools.cached_property
    def defended(self) -> DefendedModel:
        """The classifier behind the purifier."""
        model = defend(self.classifier, self.purifier)
        return DefendedModel(model, bool(self.purifier.randomised), self.how.eot, self.how.draws)

    @property
    def eps(self) -> float:
        """Budget of the oblivious attacks."""
        return self.common.attacks.eps if self.how.eps is None else self.how.eps

    @property
    def adaptive(self) -> AttackConfig:
        """The attack through purifier and classifier."""
        eps = self.eps if self.how.adaptive_eps is None else self.how.adaptive_eps
        return AttackConfig.of_effort(self.how.adaptive, eps, self.how.adaptive_steps)


@dataclass
class TrialMetrics:
    """Objectives by name; for each accuracy also the number of correct images and of all images."""

    objectives: dict[str, float] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)


def measure_trial(
    folder: Path, common: FinetuneConfig, wanted: Set[str], how: MeasureConfig, seed: int
) -> TrialMetrics:
    """Measures the purifier, or a checkpoint of one, in `folder` on the CPU: the metrics `wanted` and `ALWAYS`.

    Raises ArtifactError for an unsuitable artifact, DataError where the data is missing, FloatingPointError where the
    model returns NaN or infinity.
    """
    saved = artifact.read(folder)
    purifier = load_weights(build_model(saved.config["model"]), saved).eval().requires_grad_(False)
    classifier = load_classifier(common.classifiers[0], data_root(common.data))
    whole = load(common.data, "dev")
    images = whole.select(range(min(len(whole), how.num_images)))
    candidate, found = Candidate(purifier, classifier, images, how, common, seed), TrialMetrics()
    for name in registry.metrics.names():
        if name in wanted | ALWAYS:
            with torch.random.fork_rng(devices=[]):
                value = registry.metrics.get(name)(candidate)
            if isinstance(value, np.ndarray):
                found.counts[name] = int(value.sum()), len(value)
            found.objectives[name] = float(np.mean(value))
    return found
