"""Loaders of what is too large for memory: groups of encoded images, decoded and augmented some parts ahead."""

from __future__ import annotations

import functools
import os
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

from maep.data.augmentation import crop_box
from maep.data.decoding import Undecodable, decode, decode_crop
from maep.data.encoded import crop
from maep.data.plan import Part, Plan, Sampling
from maep.data.shards import Encoded, Shards
from maep.errors import DataError

Loaded = dict[str, NDArray[Any]]
"""One worker's part of a step on the CPU: pixels uint8 [b, H, W, 3], labels and indices int64 [b], corrupt str [b]."""

_GROUPS_KEPT = 8


@dataclass(frozen=True)
class Streamed:
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


def assemble(images: Streamed, plan: Plan, step: int, read: Callable[[int], Encoded] | None = None) -> Loaded:
    """This worker's part of a step, read, decoded and augmented.

    A corrupt image (undecodable, or its label out of range) is replaced by the next sound one of its group, round the
    end; `corrupt` says at its place which it was and why. Raises DataError where a group has no sound image.
    """
    shards, sampling, epoch = images.shards, plan.sampling, plan.epoch(step)
    pixels = np.empty((sampling.share, images.side, images.side, 3), dtype=np.uint8)
    labels, indices = np.empty((2, sampling.share), dtype=np.int64)
    corrupt, place = [""] * sampling.share, 0
    for group, rows in plan.pieces(step):
        encoded = (read or shards.read)(group)
        for row in rows:
            size = len(encoded.images)
            for other in (*range(row, size), *range(row)):
                try:
                    pixels[place] = _pixels(encoded, other, images, sampling, epoch)
                except Undecodable as reason:
                    corrupt[place] = corrupt[place] or f"{shards.place(group, other)}: {reason}"
                else:
                    labels[place], indices[place] = encoded.labels[other], encoded.indices[other]
                    break
            else:
                raise DataError(
                    f"{corrupt[place]}, and no other image of its group of {size} can be used: pack it anew"
                )
            place += 1
    return {"pixels": pixels, "labels": labels, "indices": indices, "corrupt": np.array(corrupt, dtype=object)}


def _pixels(encoded: Encoded, row: int, images: Streamed, sampling: Sampling, epoch: int) -> NDArray[np.uint8]:
    label, index = int(encoded.labels[row]), int(encoded.indices[row])
    if not 0 <= label < len(images.classes):
        raise Undecodable(f"label {label} is not in 0..{len(images.classes) - 1}")
    if not sampling.augment:
        return np.asarray(crop(decode(encoded.images[row]), images.side))
    return decode_crop(encoded.images[row], images.side, functools.partial(crop_box, index, sampling.seed, epoch))


def delivered(
    loaded: Iterable[Loaded], first_step: int, images: Streamed, plan: Plan, device: torch.device
) -> Iterator[Part]:
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
        yield Part(pixels, labels, indices, places, epoch, len(reasons))


def _moved(values: NDArray[Any], device: torch.device) -> Tensor:
    if device.type != "cuda":
        return torch.from_numpy(values if values.flags.writeable else values.copy())
    pinned = torch.empty(values.shape, dtype=torch.uint8 if values.dtype == np.uint8 else torch.int64, pin_memory=True)
    pinned.numpy()[...] = values
    return pinned.to(device, non_blocking=True)  # the copy runs while the step before it does


class Stream:
    """Parts decoded by threads, each one part; at most `threads` + `prefetch` of them are in memory."""

    def __init__(
        self, images: Streamed, sampling: Sampling, device: torch.device, threads: int = 0, prefetch: int = 4
    ) -> None:
        self.images, self.device = images, device
        self.plan = Plan(images.shards.sizes, sampling)
        self.threads, self.prefetch = threads or os.cpu_count() or 1, prefetch

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches."""
        return self.plan.steps_per_epoch

    def parts(self, first_step: int, stop_step: int) -> Generator[Part, None, None]:
        """The parts; closing ends the threads once they have done what they are at."""
        with closing(self._loaded(first_step, stop_step)) as loaded:
            yield from delivered(loaded, first_step, self.images, self.plan, self.device)

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
