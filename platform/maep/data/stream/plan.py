"""The images of each step, as pure functions of (seed, step): no state to save, no dependence on workers.

Each epoch visits the groups of a collection in a new order and the images of a group in sequence, in whole batches; the
remainder of an epoch is dropped. The step alone gives the position in the data, so a resumed run continues with exactly
the images that were due, on any number of workers.
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
    """How batches are drawn and split between workers."""

    batch_size: int
    """Images per step, over all workers."""
    seed: int = 0
    """Seed of order and augmentation."""
    augment: bool = True
    rank: int = 0
    size: int = 1
    """Number of workers that share each batch, at most batch_size; the first workers take the remainder."""

    @property
    def share(self) -> int:
        """Images per step of this worker."""
        return len(range(self.rank, self.batch_size, self.size))

    @property
    def start(self) -> int:
        """Images per step of all workers of lower rank."""
        return self.rank * (self.batch_size // self.size) + min(self.rank, self.batch_size % self.size)


@dataclass(frozen=True)
class BatchPart:
    """One worker's part of a step's batch, on the device."""

    pixels: Tensor
    """uint8 [b, H, W, 3], augmented."""
    labels: Tensor
    """int64 [b]."""
    indices: Tensor
    """int64 [b]: official indices."""
    places: Tensor
    """int64 [b]: the position of each image in the batch of all workers together."""
    epoch: int
    num_replaced: int = 0
    """Images of this part that replace corrupt ones."""


@dataclass(eq=False)
class BatchPlan:
    """The steps over groups of `sizes` images (int64 [G], each at least 1)."""

    sizes: NDArray[np.int64]
    sampling: Sampling
    _latest: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = field(default=None, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches."""
        return int(self.sizes.sum()) // self.sampling.batch_size

    def epoch(self, step: int) -> int:
        """The epoch of a step."""
        return step // self.steps_per_epoch

    def images(self, step: int) -> list[tuple[int, int]]:
        """(group, row in it) of this worker's images of the step, in order.

        They are consecutive in the epoch, so that a worker reads few groups and shares almost none with others.
        """
        order, ends = self._order(self.epoch(step))
        first = step % self.steps_per_epoch * self.sampling.batch_size + self.sampling.start
        images = np.arange(first, first + self.sampling.share)
        places = np.searchsorted(ends, images, side="right")
        groups = order[places]
        rows = images - ends[places] + self.sizes[groups]
        return list(zip(groups.tolist(), rows.tolist(), strict=True))

    def places(self) -> NDArray[np.int64]:
        """int64 [share]: the positions of this worker's images in the batch of all workers.

        They are spread evenly over the batch by the golden ratio, so that an objective that treats the first positions
        of a batch differently from the last gives every worker its share of both.
        """
        sampling, stride = self.sampling, max(1, round(self.sampling.batch_size * GOLDEN))
        while math.gcd(stride, sampling.batch_size) > 1:
            stride += 1
        return np.arange(sampling.start, sampling.start + sampling.share) * stride % sampling.batch_size

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The groups in the order of an epoch, and the position after the last image of each."""
        if self._latest is None or self._latest[0] != epoch:
            order = epoch_order(len(self.sizes), self.sampling.seed, epoch)
            self._latest = (epoch, order, np.cumsum(self.sizes[order]))
        return self._latest[1], self._latest[2]
