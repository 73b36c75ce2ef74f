"""Loaders of what is too large for memory: groups of encoded images, decoded and augmented some parts ahead."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
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
from maep.data.reading.decoding import Undecodable
from maep.data.reading.shards import EncodedGroup, Shards
from maep.data.stream.augmentation import crop_box
from maep.data.stream.plan import BatchPart, BatchPlan, Sampling
from maep.errors import DataError

Loaded = dict[str, NDArray[Any]]
"""One worker's part of a step on the CPU: pixels uint8 [b, H, W, 3], labels and indices int64 [b], corrupt str [b]."""

_GROUPS_KEPT = 8
_LOOKS = 16


@dataclass(frozen=True)
class StreamedImages:
    """Shards, and how their images become pixels."""

    shards: Shards
    side: int
    max_corrupt_share: float = 0.0

    def __len__(self) -> int:
        return int(self.shards.sizes.sum())

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.shards.name

    @property
    def classes(self) -> tuple[str, ...]:
        """In label order."""
        return self.shards.classes

    @property
    def fingerprint(self) -> str:
        """Of the shards."""
        return self.shards.fingerprint

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return self.side, self.side


def assemble(
    images: StreamedImages, plan: BatchPlan, step: int, read: Callable[[int], EncodedGroup] | None = None
) -> Loaded:
    """This worker's part of a step, read, decoded and augmented.

    A corrupt image (undecodable, or its label out of range) is replaced by the next sound one after it in the
    collection; `corrupt` says at its place which it was and why. Raises DataError where _LOOKS in a row are corrupt.
    """
    read = read or images.shards.read
    pixels = np.empty((plan.sampling.share, images.side, images.side, 3), dtype=np.uint8)
    labels, indices = np.empty((2, plan.sampling.share), dtype=np.int64)
    corrupt, epoch = [], plan.epoch(step)
    for place, (group, row) in enumerate((group, row) for group, rows in plan.pieces(step) for row in rows):
        found = _sound(images, plan, epoch, group, row, read)
        pixels[place], labels[place], indices[place] = found[:3]
        corrupt.append(found[3])
    return {"pixels": pixels, "labels": labels, "indices": indices, "corrupt": np.array(corrupt, dtype=object)}


def _sound(
    images: StreamedImages, plan: BatchPlan, epoch: int, group: int, row: int, read: Callable[[int], EncodedGroup]
) -> tuple[NDArray[np.uint8], int, int, str]:
    """Pixels, label and index of an image, or of the next sound one and then what is wrong with this."""
    wrong = ""
    for _ in range(_LOOKS):
        encoded = read(group)
        try:
            pixels = _pixels(encoded, row, images, plan.sampling, epoch)
        except Undecodable as reason:
            wrong = wrong or f"{images.shards.place(group, row)}: {reason}"
            group, row = (group, row + 1) if row + 1 < plan.sizes[group] else ((group + 1) % len(plan.sizes), 0)
        else:
            return pixels, int(encoded.labels[row]), int(encoded.indices[row]), wrong
    raise DataError(f"{wrong}, and so are the {_LOOKS - 1} images after it: pack or fetch them anew")


def _pixels(
    encoded: EncodedGroup, row: int, images: StreamedImages, sampling: Sampling, epoch: int
) -> NDArray[np.uint8]:
    label, index = int(encoded.labels[row]), int(encoded.indices[row])
    if not 0 <= label < len(images.classes):
        raise Undecodable(f"label {label} is not in 0..{len(images.classes) - 1}")
    if not sampling.augment:
        return decode_centre(encoded.images[row], images.side)
    return decode_crop(encoded.images[row], images.side, functools.partial(crop_box, index, sampling.seed, epoch))


def delivered(
    loaded: Iterable[Loaded], first_step: int, images: StreamedImages, plan: BatchPlan, device: torch.device
) -> Iterator[BatchPart]:
    """Parts from `loaded` ones, whose steps begin at `first_step`: on the device, their corrupt images counted.

    Raises DataError once more of an epoch's images were corrupt than its share allows.
    """
    places = torch.from_numpy(plan.places()).to(device)
    limit = int(images.max_corrupt_share * plan.steps_per_epoch * plan.sampling.share)
    epoch, total = -1, 0
    for step, each in enumerate(loaded, first_step):
        if plan.epoch(step) != epoch:
            epoch, total = plan.epoch(step), 0
        reasons = [line for line in each["corrupt"] if line]
        total += len(reasons)
        if total > limit:
            raise DataError(
                f"{reasons[-1]}: {total} corrupt in epoch {epoch}, {limit} may be: repair or remove the image, or"
                f" raise data.max_corrupt_share, now {images.max_corrupt_share:g}"
            )
        pixels, labels, indices = (_moved(each[key], device) for key in ("pixels", "labels", "indices"))
        yield BatchPart(pixels, labels, indices, places, epoch, len(reasons))


def _moved(values: NDArray[Any], device: torch.device) -> Tensor:
    if device.type != "cuda":
        return torch.from_numpy(values if values.flags.writeable else values.copy())
    pinned = torch.empty(values.shape, dtype=torch.uint8 if values.dtype == np.uint8 else torch.int64, pin_memory=True)
    pinned.numpy()[...] = values
    return pinned.to(device, non_blocking=True)  # the copy runs while the step before it does


class StreamLoader(ABC):
    """A loader of streamed images by a plan, whoever it is that decodes them."""

    def __init__(self, images: StreamedImages, sampling: Sampling, device: torch.device) -> None:
        self.images, self.device = images, device
        self.plan = BatchPlan(images.shards.sizes, sampling)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches."""
        return self.plan.steps_per_epoch

    def parts(self, first_step: int, stop_step: int) -> Generator[BatchPart, None, None]:
        """The parts; closing ends what decodes them. Raises UnavailableError where nothing can."""
        with closing(self._loaded(first_step, stop_step)) as loaded:
            yield from delivered(loaded, first_step, self.images, self.plan, self.device)

    @abstractmethod
    def _loaded(self, first_step: int, stop_step: int) -> Generator[Loaded, None, None]:
        """The parts of these steps as `assemble` makes them, in order."""


class ThreadLoader(StreamLoader):
    """Parts decoded by threads, each one part; at most `threads` + `prefetch` of them are in memory.

    Closing waits for what the threads are at.
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
