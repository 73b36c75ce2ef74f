"""Loaders of images that do not fit in memory: groups of encoded images are prefetched, decoded and augmented."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maep.data.reading.cropping import decode_centre, decode_crop
from maep.data.reading.decoding import Undecodable, check_label
from maep.data.reading.shards import EncodedGroup, Shards
from maep.data.stream.augmentation import crop_box
from maep.data.stream.plan import BatchPart, BatchPlan, Sampling
from maep.errors import DataError

Loaded = dict[str, NDArray[Any]]
"""One worker's part of a step on the CPU: pixels uint8 [b, H, W, 3], labels and indices int64 [b], corrupt str [b]."""
ReadGroup = Callable[[int], EncodedGroup]

_GROUPS_KEPT = 8
_ATTEMPTS = 16


@dataclass(frozen=True)
class StreamedImages:
    """The images of a collection, as squares of `side` pixels."""

    shards: Shards
    side: int
    max_corrupt_share: float = 0.0

    def __len__(self) -> int:
        return int(self.shards.sizes.sum())

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.shards.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.shards.classes

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the collection."""
        return self.shards.fingerprint

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return self.side, self.side


def assemble(images: StreamedImages, plan: BatchPlan, step: int, read: ReadGroup) -> Loaded:
    """This worker's part of a step, read, decoded and augmented.

    A corrupt image (undecodable, or with a label out of range) is replaced by the next sound one in the collection, and
    `corrupt` gives its name and the reason. Raises DataError for _ATTEMPTS corrupt images in a row.
    """
    share, epoch = plan.sampling.share, plan.epoch(step)
    pixels = np.empty((share, images.side, images.side, 3), dtype=np.uint8)
    labels, indices = np.empty((2, share), dtype=np.int64)
    corrupt = np.empty(share, dtype=object)
    for k, (group, row) in enumerate(plan.images(step)):
        pixels[k], labels[k], indices[k], corrupt[k] = _sound_image(images, plan, epoch, group, row, read)
    return {"pixels": pixels, "labels": labels, "indices": indices, "corrupt": corrupt}


def _sound_image(
    images: StreamedImages, plan: BatchPlan, epoch: int, group: int, row: int, read: ReadGroup
) -> tuple[NDArray[np.uint8], int, int, str]:
    """Pixels, label and index of the image or, if it is corrupt, of the next sound one; and the reason or ''."""
    wrong = ""
    for _ in range(_ATTEMPTS):
        encoded = read(group)
        try:
            pixels = _pixels(encoded, row, images, plan.sampling, epoch)
        except Undecodable as reason:
            wrong = wrong or f"{images.shards.place(group, row)}: {reason}"
            group, row = (group, row + 1) if row + 1 < plan.sizes[group] else ((group + 1) % len(plan.sizes), 0)
        else:
            return pixels, int(encoded.labels[row]), int(encoded.indices[row]), wrong
    raise DataError(f"{wrong}; the {_ATTEMPTS - 1} images after it are corrupt too: fetch or pack the files again")


def _pixels(
    encoded: EncodedGroup, row: int, images: StreamedImages, sampling: Sampling, epoch: int
) -> NDArray[np.uint8]:
    check_label(int(encoded.labels[row]), len(images.classes))
    if not sampling.augment:
        return decode_centre(encoded.images[row], images.side)
    box_of = functools.partial(crop_box, int(encoded.indices[row]), sampling.seed, epoch)
    return decode_crop(encoded.images[row], images.side, box_of)


class StreamLoader(ABC):
    """A loader that follows a BatchPlan; subclasses decode."""

    def __init__(self, images: StreamedImages, sampling: Sampling, device: torch.device) -> None:
        self.images, self.device = images, device
        self.plan = BatchPlan(images.shards.sizes, sampling)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches."""
        return self.plan.steps_per_epoch

    def parts(self, first_step: int, stop_step: int) -> Generator[BatchPart, None, None]:
        """The parts of steps first_step..stop_step-1, on the device. Closing the generator stops the decoding.

        Raises DataError if too many images of an epoch are corrupt, UnavailableError if storage fails.
        """
        places = torch.from_numpy(self.plan.places()).to(self.device)
        limit = int(self.images.max_corrupt_share * self.plan.steps_per_epoch * self.plan.sampling.share)
        epoch, total = -1, 0
        with closing(self._loaded(first_step, stop_step)) as loaded:
            for step, each in enumerate(loaded, first_step):
                if self.plan.epoch(step) != epoch:
                    epoch, total = self.plan.epoch(step), 0
                reasons = [line for line in each["corrupt"] if line]
                total += len(reasons)
                if total > limit:
                    raise DataError(
                        f"{reasons[-1]}: {total} corrupt images in epoch {epoch}, the limit is {limit}: repair or"
                        f" remove them, or raise data.max_corrupt_share, now {self.images.max_corrupt_share:g}"
                    )
                pixels, labels, indices = (
                    _to_device(each[key], self.device) for key in ("pixels", "labels", "indices")
                )
                yield BatchPart(pixels, labels, indices, places, epoch, len(reasons))

    @abstractmethod
    def _loaded(self, first_step: int, stop_step: int) -> Generator[Loaded, None, None]:
        """The parts of these steps as `assemble` makes them, in order."""


class ThreadLoader(StreamLoader):
    """Decodes by threads, one part each; at most `threads` + `prefetch` parts are in memory.

    Closing waits for parts that are being decoded.
    """

    def __init__(
        self, images: StreamedImages, sampling: Sampling, device: torch.device, threads: int = 0, prefetch: int = 4
    ) -> None:
        super().__init__(images, sampling, device)
        self.threads, self.prefetch = threads or os.cpu_count() or 1, prefetch

    def _loaded(self, first_step: int, stop_step: int) -> Generator[Loaded, None, None]:
        read = functools.lru_cache(maxsize=_GROUPS_KEPT)(self.images.shards.read)  # a group serves several steps
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="maep-decode")
        coming = (pool.submit(assemble, self.images, self.plan, step, read) for step in range(first_step, stop_step))
        ahead: deque[Future[Loaded]] = deque(islice(coming, self.threads + self.prefetch - 1))
        try:
            while ahead:
                loaded = ahead.popleft().result()
                ahead.extend(islice(coming, 1))
                yield loaded
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    if device.type != "cuda":
        return torch.from_numpy(values if values.flags.writeable else values.copy())
    pinned = torch.empty(values.shape, dtype=torch.uint8 if values.dtype == np.uint8 else torch.int64, pin_memory=True)
    pinned.numpy()[...] = values
    return pinned.to(device, non_blocking=True)  # overlaps with the computation of the previous step
