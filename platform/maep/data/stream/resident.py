"""Loaders of images in memory: a whole data set, decoded once, or random images."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maep.data.image_set import ImageSet
from maep.data.stream.augmentation import crop_and_flip, epoch_order
from maep.data.stream.plan import BatchPart, Sampling
from maep.errors import DataError

_CHUNK = 1024


class ResidentLoader:
    """A whole set in memory, in a new order each epoch; of n workers, each takes every n-th image of a batch."""

    def __init__(self, images: ImageSet, sampling: Sampling, device: torch.device, memory_share: float = 0.5) -> None:
        self.images, self.sampling, self.device = images, sampling, device
        pixels = torch.from_numpy(_in_memory(images, memory_share / sampling.size))
        if device.type == "cuda" and pixels.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            self.pixels = pixels.pin_memory()  # the other half is for the model
        else:
            self.pixels = pixels.to(device)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches."""
        return len(self.images) // self.sampling.batch_size

    def positions(self, step: int) -> NDArray[np.int64]:
        """int64 [b]: positions in the image set of this worker's part of the step."""
        sampling = self.sampling
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.images), sampling.seed, epoch))
        start = place * sampling.batch_size
        return self._order[1][start : start + sampling.batch_size][sampling.rank :: sampling.size]

    def part(self, step: int) -> BatchPart:
        """This worker's part of one step."""
        sampling, positions = self.sampling, self.positions(step)
        epoch = step // self.steps_per_epoch
        chosen = torch.from_numpy(positions).to(self.pixels.device)
        pixels = self.pixels.index_select(0, chosen).to(self.device, non_blocking=True)
        indices = torch.from_numpy(self.images.indices[positions]).to(self.device)
        if sampling.augment:
            pad = max(1, min(self.images.image_shape) // 8)
            pixels = crop_and_flip(pixels, indices, sampling.seed, epoch, pad)
        labels = torch.from_numpy(self.images.labels[positions]).to(self.device)
        places = torch.arange(sampling.rank, sampling.batch_size, sampling.size, device=self.device)
        return BatchPart(pixels, labels, indices, places, epoch)

    def parts(self, first_step: int, stop_step: int) -> Generator[BatchPart, None, None]:
        """The parts of steps first_step..stop_step-1, each made on demand."""
        yield from map(self.part, range(first_step, stop_step))


@dataclass(frozen=True)
class SyntheticImages:
    """Random images in place of a data set."""

    name: str
    image_shape: tuple[int, int]
    classes: tuple[str, ...]
    fingerprint: str = "synthetic"

    def draw(self, count: int) -> Tensor:
        """uint8 [count, H, W, 3], the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (count, *self.image_shape, 3), dtype=torch.uint8, generator=generator)


class SyntheticLoader:
    """The same random part at every step."""

    steps_per_epoch = 1

    def __init__(self, images: SyntheticImages, sampling: Sampling, device: torch.device) -> None:
        places = torch.arange(sampling.rank, sampling.batch_size, sampling.size, device=device)
        labels = places % len(images.classes)
        self.part = BatchPart(images.draw(sampling.share).to(device), labels, places, places, 0)

    def parts(self, first_step: int, stop_step: int) -> Generator[BatchPart, None, None]:
        """The parts of steps first_step..stop_step-1."""
        for step in range(first_step, stop_step):
            yield replace(self.part, epoch=step)


def _in_memory(images: ImageSet, memory_share: float) -> NDArray[np.uint8]:
    """All pixels of a set, decoded. Raises DataError if they exceed `memory_share` of the free memory."""
    if isinstance(images.images, np.ndarray):
        return images.images
    shape = images.images.shape
    size, room = int(np.prod(shape, dtype=np.int64)), int(memory_share * _free_memory())
    if size > room:
        raise DataError(
            f"{images.name} takes {size / 2**30:.1f} GiB in memory, where {room / 2**30:.1f} may be used:"
            " use --loader.kind stream (or ray, on Ray Train workers), or raise loader.memory_share"
        )
    pixels = np.empty(shape, dtype=np.uint8)
    for start in range(0, shape[0], _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, shape[0]))
        pixels[chunk] = images.pixels(chunk)
    return pixels


def _free_memory() -> int:
    """Bytes that this process may still allocate: the less of the machine's and the container's."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():
        free = min(free, int(limit[0]) - int(used[0]))
    return free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []
