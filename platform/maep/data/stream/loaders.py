"""Chooses a loader, which brings the augmented images of each step to the device.

  resident   the whole set decoded in memory, on the device where it fits; crop and flip on the device
  stream     groups of encoded images, prefetched and decoded by threads of this process
  ray        the same parts, read and decoded outside the training processes (maep.train.ray.loader)
  synthetic  random images made once, to measure training without input

`stream` and `ray` give the same bits. The metric `data_s` shows how long a run waits for its data.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from maep import registry
from maep.data import datasets
from maep.data.config import DataConfig, LoaderConfig
from maep.data.image_set import ImageSet
from maep.data.reading.encoded import first_images
from maep.data.stream.plan import BatchPart, Sampling
from maep.data.stream.resident import SyntheticImages
from maep.data.stream.streaming import StreamedImages
from maep.errors import ConfigError


class Loader(Protocol):
    """This worker's parts of the steps' batches, in order."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches."""

    def parts(self, first_step: int, stop_step: int) -> Generator[BatchPart, None, None]:
        """The parts of steps first_step..stop_step-1. Closing the generator stops prefetching.

        Raises DataError if too many images are corrupt, UnavailableError if storage fails.
        """


Images = ImageSet | StreamedImages | SyntheticImages
"""What a run trains on."""


def resolved(loader: LoaderConfig, data: DataConfig, on_ray: bool) -> LoaderConfig:
    """`loader` with its kind chosen. Raises ConfigError for a kind that does not fit the data or the machine.

    Small data sets are resident and ImageNet is streamed on every machine, because augmentation must not depend on the
    size of the memory.
    """
    kind, is_streamed = loader.kind, registry.datasets.declared(data.name).streamed
    if kind == "auto":
        kind = "resident" if not is_streamed else "ray" if on_ray else "stream"
    if kind in ("stream", "ray") and not is_streamed:
        raise ConfigError(f"loader.kind: {kind}: {data.name} is not streamed, it fits in memory: use resident")
    if kind == "ray" and not on_ray:
        raise ConfigError("loader.kind: ray needs Ray Train workers: set workers.num_workers, or use stream")
    if kind in ("stream", "ray") and data.max_corrupt and not data.max_corrupt_share:
        warnings.warn(
            f"data.max_corrupt: {data.max_corrupt} applies to the images of dev only; for streamed images, set"
            f" data.max_corrupt_share, now {data.max_corrupt_share:g}",
            stacklevel=2,
        )
    if kind == "resident" and data.train_files is not None:
        raise ConfigError("data.train_files: loader.kind resident does not read them: use stream or ray")
    return replace(loader, kind=kind)


def open_images(loader: LoaderConfig, data: DataConfig) -> Images:
    """The training images for `loader` (resolved). Raises DataError if they are missing, empty or damaged."""
    declared = registry.datasets.declared(data.name)
    side = data.image_size or declared.side
    match loader.kind:
        case "synthetic":
            return SyntheticImages(data.name, (side, side), tuple(map(str, range(declared.num_classes))))
        case "stream" | "ray":
            from maep.data.sets import imagenet

            shards = imagenet.train_shards(datasets.data_uri(data), data.train_files, data.read_timeout_s)
            return StreamedImages(shards, side, data.max_corrupt_share)
        case _:
            return datasets.load(data, "train")


def sample(images: Images, count: int) -> NDArray[np.uint8]:
    """uint8 [n, H, W, 3], n <= count: some images, not augmented."""
    match images:
        case ImageSet():
            return images.pixels(np.arange(min(len(images), count)))
        case SyntheticImages():
            return images.draw(count).numpy()
        case StreamedImages(shards, side):
            return first_images(shards, count, side)


def part_bytes(sampling: Sampling, image_shape: tuple[int, int]) -> int:
    """Bytes of one worker's part of a step."""
    return sampling.share * (3 * image_shape[0] * image_shape[1] + 16)


def loader_rate(loader: Loader, share: int, steps: int, first_step: int = 0) -> float:
    """Images per second of a loader alone on this worker: `steps` parts of `share` images, after a first one."""
    with closing(loader.parts(first_step, first_step + 1 + steps)) as parts:
        _finished(next(parts))
        began = time.perf_counter()
        for part in parts:
            _finished(part)
    return steps * share / (time.perf_counter() - began)


def _finished(part: BatchPart) -> None:
    if part.pixels.is_cuda:
        torch.cuda.synchronize(part.pixels.device)
