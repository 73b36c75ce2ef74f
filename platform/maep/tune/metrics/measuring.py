"""Measure a trial: its purifier in front of a classifier on a few `dev` images, never on `test` or by its own loss."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from maep import artifact, registry
from maep.data.datasets import data_root, load
from maep.models.build import build_model, load_weights
from maep.models.classifiers.load import load_classifier
from maep.train.config import FinetuneConfig
from maep.tune.config import MeasureConfig
from maep.tune.metrics.candidate import Candidate

ALWAYS = {"clean_accuracy", "num_parameters"}


@dataclass
class TrialMetrics:
    """Objectives by name; for each accuracy also the number of images right, and of all images."""

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
