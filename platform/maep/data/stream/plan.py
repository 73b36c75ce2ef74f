"""Which images a step takes, as pure functions of (seed, step): no state to save, no dependence on the workers.

The groups of a collection in a fresh order each epoch, their images one after the other, cut into whole batches; what
is left of an epoch is dropped. So the position of a run is its step, which stands for (epoch, group, row), and a
resumed run, or one with other workers, goes on with exactly the images that would have come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maep.data.stream.augmentation import epoch_order

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Sampling:
    """Which part of which batches is loaded, and the seed of order and augmentation."""

    batch_size: int
    """Images of a step, over all workers together."""
    seed: int = 0
    augment: bool = True
    rank: int = 0
    size: int = 1
    """How many workers share each batch, no more than it has images: the first ones take what does not divide."""

    @property
    def share(self) -> int:
        """Images of a step that are this worker's."""
        return len(range(self.rank, self.batch_size, self.size))

    @property
    def start(self) -> int:
        """Images of a step that are the workers' before."""
        return self.rank * (self.batch_size // self.size) + min(self.rank, self.batch_size % self.size)


@dataclass(frozen=True)
class BatchPart:
    """One worker's part of a step, on the device."""

    pixels: Tensor
    """uint8 [b, H, W, 3], augmented."""
    labels: Tensor
    """int64 [b]."""
    indices: Tensor
    """int64 [b]: official indices."""
    places: Tensor
    """int64 [b]: where each image stands in the batch of all workers together."""
    epoch: int
    num_replaced: int = 0
    """Images of this part that stand for corrupt ones."""


@dataclass(eq=False)
class BatchPlan:
    """The steps over groups of `sizes` images (int64 [G], each at least 1)."""

    sizes: NDArray[np.int64]
    sampling: Sampling
    _latest: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = field(default=None, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches."""
        return int(self.sizes.sum()) // self.sampling.batch_size

    def epoch(self, step: int) -> int:
        """The epoch that the step is in."""
        return step // self.steps_per_epoch

    def pieces(self, step: int) -> list[tuple[int, range]]:
        """(group, rows in it) of this worker's part of the step, in order.

        A worker's part is a run of the epoch's images, so that it reads few groups and no worker reads another's.
        """
        order, ends = self._order(self.epoch(step))
        sampling = self.sampling
        start = step % self.steps_per_epoch * sampling.batch_size + sampling.start
        stop = start + sampling.share
        place, found = int(np.searchsorted(ends, start, side="right")), []
        while start < stop:
            group, end = int(order[place]), int(ends[place])
            first = end - int(self.sizes[group])
            found.append((group, range(start - first, min(stop, end) - first)))
            start, place = min(stop, end), place + 1
        return found

    def places(self) -> NDArray[np.int64]:
        """int64 [share]: where this worker's images stand in the batch of all workers.

        Scattered over all of it (by the golden ratio, so that any run of them is spread evenly): an objective that
        treats the first places differently from the last ones then gives every worker its part of each.
        """
        sampling, stride = self.sampling, max(1, round(self.sampling.batch_size * GOLDEN))
        while math.gcd(stride, sampling.batch_size) > 1:
            stride += 1
        return np.arange(sampling.start, sampling.start + sampling.share) * stride % sampling.batch_size

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        latest = self._latest
        if latest is None or latest[0] != epoch:
            order = epoch_order(len(self.sizes), self.sampling.seed, epoch)
            latest = self._latest = (epoch, order, np.cumsum(self.sizes[order]))
        return latest[1], latest[2]
