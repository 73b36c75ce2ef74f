"""Loaders against each other: `resident` over a torch DataLoader, and training from `ray` over training from noise.

Both are ratios of two measurements in one process tree, taken in turns, so that whatever else the machine does meets
both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maep import cluster
from maep.data.config import DataConfig, LoaderConfig
from maep.data.datasets import load
from maep.data.image_set import ImageSet, to_float
from maep.data.stream import augmentation
from maep.data.stream.loaders import Loader, open_images
from maep.data.stream.plan import Sampling
from maep.data.stream.resident import ResidentLoader, SyntheticLoader
from maep.models.build import build_model
from maep.train.batch import Batch
from maep.train.config import LoopConfig
from maep.train.loop.run import batch_of
from maep.train.objectives import Pretraining
from maep.train.ray.loader import RayLoader

CPU = torch.device("cpu")
ROUNDS = 5
T = TypeVar("T")


class _Items(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The same images one by one, cropped and flipped in each item, as a DataLoader's worker does it."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        pixels = torch.from_numpy(self.images.images[position : position + 1])  # type: ignore[index]
        index = torch.from_numpy(self.images.indices[position : position + 1])
        return augmentation.crop_and_flip(pixels, index, 0, 0)[0], int(self.images.labels[position])


def _rate(given: Iterator[T], step: Callable[[T], object], steps: int, size: int) -> float:
    """Images a second over `steps`, the first one not counted."""
    step(next(given))
    began = time.perf_counter()
    for _ in range(steps):
        step(next(given))
    return steps * size / (time.perf_counter() - began)


@pytest.mark.shared_data
@pytest.mark.timeout(900)
def test_resident_gives_five_times_a_dataloader(shared_data: Path) -> None:
    """CIFAR-10, batches of 128, and a model that is one layer; the DataLoader has two processes."""
    images, size = load(DataConfig("cifar10", str(shared_data)), "train"), 128
    model = nn.Linear(3 * 32 * 32, 10)

    def step(pixels: Tensor) -> None:
        model.zero_grad()
        model(to_float(pixels).flatten(1)).square().mean().backward()

    ratios, sampler = [], torch.utils.data.RandomSampler(_Items(images), generator=torch.Generator().manual_seed(0))
    for _ in range(ROUNDS):
        items = torch.utils.data.DataLoader(_Items(images), size, sampler=sampler, num_workers=2, drop_last=True)
        plain = _rate((pixels for pixels, _ in items), step, 40, size)
        with closing(ResidentLoader(images, Sampling(size), CPU).parts(0, 41)) as parts:
            ours = _rate((part.pixels for part in parts), step, 40, size)
        ratios.append(ours / plain)
        print(f"\nresident {ours:,.0f} images/s, DataLoader {plain:,.0f}")
    print(f"resident over a DataLoader: {statistics.median(ratios):.2f} (rounds: {_shown(ratios)})")
    assert statistics.median(ratios) >= 5


@pytest.mark.shared_data
@pytest.mark.timeout(1800)
def test_ray_keeps_up_with_noise(shared_data: Path) -> None:
    """ViT-S/16 at 224 px, batches of 32, one process: its steps fed by Ray Data, and by the same noise for ever."""
    data = DataConfig("imagenet", str(shared_data), train_files="imagenet_slice/val_256.parquet")
    sampling, loop = Sampling(32), LoopConfig(samples=32 * 100, batch_size=32)
    values: dict[str, Any] = {"name": "mae", "image_size": 224, "patch_size": 16, "width": 384, "depth": 12}
    values |= {"num_heads": 6, "decoder_width": 256, "decoder_depth": 4, "decoder_heads": 8}
    model = build_model(values)
    objective = Pretraining(model, 0.75)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    real, noise = open_images(LoaderConfig("ray"), data), open_images(LoaderConfig("synthetic"), data)
    with cluster.session(None, 4):
        loaders: dict[str, Loader] = {
            "ray": RayLoader(real, sampling, CPU, LoaderConfig("ray")),  # type: ignore[arg-type]
            "synthetic": SyntheticLoader(noise, sampling, CPU),  # type: ignore[arg-type]
        }
        ratios = []
        for turn in range(ROUNDS):
            rates = {name: _trained(loader, objective, optimizer, loop, 8 * turn) for name, loader in loaders.items()}
            ratios.append(rates["ray"] / rates["synthetic"])
            print("\n" + ", ".join(f"{name} {rate:.2f} images/s" for name, rate in rates.items()))
    print(f"ray over synthetic: {statistics.median(ratios):.3f} (rounds: {_shown(ratios)})")
    assert statistics.median(ratios) >= 0.9


def _trained(
    loader: Loader, objective: Pretraining, optimizer: torch.optim.Optimizer, loop: LoopConfig, first: int
) -> float:
    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        objective(batch).loss.backward()
        optimizer.step()

    with closing(loader.parts(first, first + 7)) as parts:
        return _rate((batch_of(part, first, loop) for part in parts), step, 6, loop.batch_size)


def _shown(ratios: list[float]) -> str:
    return ", ".join(f"{ratio:.3f}" for ratio in np.sort(ratios))
