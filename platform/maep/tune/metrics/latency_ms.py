"""Latency of the purifier."""

from __future__ import annotations

import statistics
import time

import torch

from maep import registry
from maep.tune.metrics.candidate import Candidate


@registry.metric("latency_ms", words="latency of one image", unit="ms", digits=2, lower_is_better=True, order=4)
@torch.no_grad()
def latency_ms(candidate: Candidate) -> float:
    """Milliseconds of one image on one thread, the median of `measure.latency_passes`."""
    image, threads = candidate.images.batch(range(1))[0], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = []
        for _ in range(candidate.how.latency_passes + 2):  # two to warm up
            start = time.perf_counter()
            candidate.purifier(image)
            taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(taken[2:])
