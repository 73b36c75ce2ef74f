"""Accuracy under an attack through purifier and classifier."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maep import registry
from maep.evaluate.measure import measure_set
from maep.tune.metrics.candidate import Candidate


@registry.metric("adaptive_accuracy", words="adaptive accuracy", unit="%", scale=100, order=3)
def adaptive_accuracy(candidate: Candidate) -> NDArray[np.bool_]:
    """Whether each of the first `measure.adaptive_images` images is classified correctly under `measure.adaptive`."""
    images = candidate.images
    few = images.select(range(min(len(images), candidate.how.adaptive_images or len(images))))
    return measure_set(candidate.defended, few, candidate.adaptive, seed=candidate.seed)
