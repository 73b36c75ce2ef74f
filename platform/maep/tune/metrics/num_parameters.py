"""Size of the purifier."""

from __future__ import annotations

from maep import registry
from maep.tune.metrics.candidate import Candidate


@registry.metric(
    "num_parameters", words="number of parameters", unit="thousand", scale=1e-3, lower_is_better=True, order=5
)
def num_parameters(candidate: Candidate) -> float:
    """The number of weights."""
    return float(sum(parameter.numel() for parameter in candidate.purifier.parameters()))
