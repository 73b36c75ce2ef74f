"""Accuracy under attacks on the bare classifier."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maep import registry
from maep.attacks.config import AttackConfig
from maep.evaluate.attacked_sets import dev_images
from maep.evaluate.measure import measure_set
from maep.tune.metrics.candidate import Candidate


@registry.metric("oblivious_accuracy", words="oblivious accuracy", unit="%", scale=100, order=2)
def oblivious_accuracy(candidate: Candidate) -> NDArray[np.bool_]:
    """Whether each image is classified correctly under all of `measure.oblivious`, made once for all trials."""
    images, how, seed = candidate.images, candidate.how, candidate.seed
    right = np.ones(len(images), dtype=bool)
    for name in how.oblivious:
        attack = AttackConfig.of_effort(name, candidate.eps, how.steps)
        attacked = dev_images(candidate.classifier, images, attack, seed)
        right &= measure_set(candidate.defended, images, attacked, seed=seed)
    return right
