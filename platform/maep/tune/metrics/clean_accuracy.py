"""Accuracy on clean images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maep import registry
from maep.evaluate.measure import measure_set
from maep.tune.metrics.candidate import Candidate


@registry.metric("clean_accuracy", words="clean accuracy", unit="%", scale=100, order=1)
def clean_accuracy(candidate: Candidate) -> NDArray[np.bool_]:
    """Whether each clean image is classified correctly."""
    return measure_set(candidate.defended, candidate.images, seed=candidate.seed)
