"""Measure a trial: its purifier in front of a classifier on a few `dev` images, never on `test` or by its own loss."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maep import artifact
from maep.attacks.config import AttackConfig
from maep.data.datasets import data_root, load
from maep.evaluate.attacked_sets import dev_images
from maep.evaluate.measure import DefendedModel, measure_set
from maep.models.build import build_model, load_weights
from maep.models.classifiers.load import load_classifier
from maep.models.purifier import defend
from maep.train.config import FinetuneConfig
from maep.tune.config import MeasureConfig
from maep.tune.record import Objective


@dataclass
class TrialMetrics:
    """Objectives by name; for each accuracy also the number of images right, and of all images."""

    objectives: dict[str, float] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, name: Objective, right: NDArray[np.bool_]) -> None:
        """Adds an accuracy from bool [N], whether each image is right."""
        self.counts[name] = int(right.sum()), len(right)
        self.objectives[name] = float(right.mean())


def measure_trial(
    folder: Path, common: FinetuneConfig, wanted: Sequence[Objective], how: MeasureConfig, seed: int
) -> TrialMetrics:
    """Measures the purifier, or a checkpoint of one, in `folder` on the CPU: `wanted`, clean accuracy and parameters.

    Images, classifier and budget are those of the search (`common`), not of the trial's training: otherwise the trial
    trained against the weakest attack would look best.

    clean_accuracy      on clean images
    oblivious_accuracy  worst case per image over `how.oblivious`, made on the bare classifier and kept
    adaptive_accuracy   under `how.adaptive` through purifier and classifier
    latency_ms          of one image through the purifier on one thread, median of `how.latency_passes`
    num_parameters      of the purifier

    Accuracies are measured as in an evaluation (`maep.evaluate.measure`). Raises ArtifactError for an unsuitable
    artifact, DataError where the data is missing, FloatingPointError where the model returns NaN or infinity.
    """
    saved = artifact.read(folder)
    purifier = load_weights(build_model(saved.config["model"]), saved).eval().requires_grad_(False)
    classifier = load_classifier(common.classifiers[0], data_root(common.data))
    whole = load(common.data, "dev")
    images = whole.select(range(min(len(whole), how.num_images)))
    eps = common.attacks.eps if how.eps is None else how.eps
    model = defend(classifier, purifier)
    defended = DefendedModel(model, bool(purifier.randomised), how.eot, how.draws)
    found = TrialMetrics()
    found.add("clean_accuracy", measure_set(defended, images, seed=seed))
    if "oblivious_accuracy" in wanted:
        right = np.ones(len(images), dtype=bool)
        for name in how.oblivious:
            attacked = dev_images(classifier, images, AttackConfig.of_effort(name, eps, how.steps), seed)
            right &= measure_set(defended, images, attacked, seed=seed)
        found.add("oblivious_accuracy", right)
    if "adaptive_accuracy" in wanted:
        budget = eps if how.adaptive_eps is None else how.adaptive_eps
        few = images.select(range(min(len(images), how.adaptive_images or len(images))))
        adaptive = AttackConfig.of_effort(how.adaptive, budget, how.adaptive_steps)
        found.add("adaptive_accuracy", measure_set(defended, few, adaptive, seed=seed))
    if "latency_ms" in wanted:
        with torch.random.fork_rng(devices=[]):
            found.objectives["latency_ms"] = _latency_ms(purifier, images.batch(range(1))[0], how.latency_passes)
    found.objectives["num_parameters"] = float(sum(parameter.numel() for parameter in purifier.parameters()))
    return found


@torch.no_grad()
def _latency_ms(purifier: nn.Module, image: Tensor, passes: int) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = []
        for _ in range(passes + 2):  # two to warm up
            start = time.perf_counter()
            purifier(image)
            taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(taken[2:])
