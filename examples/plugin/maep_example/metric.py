"""A search metric: how much a purifier changes images that nobody attacked."""

from __future__ import annotations

import torch

from maep import registry
from maep.tune.metrics.candidate import Candidate


@registry.metric("clean_change", words="change of clean images", unit="levels", scale=255, lower_is_better=True)
@torch.no_grad()
def clean_change(candidate: Candidate) -> float:
    """Mean absolute change of a value, in units of the image range."""
    images, _ = candidate.images.batch(range(len(candidate.images)))
    return float((candidate.purifier(images) - images).abs().mean())
