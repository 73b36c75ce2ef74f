"""The loader `ray`: the same parts as `stream`, clear errors, and no reading ahead of requests."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from processes import memory_mib

from maep import cluster
from maep.data.config import LoaderConfig
from maep.data.reading.decoding import encode_png
from maep.data.sets import imagenet
from maep.data.stream.plan import BatchPart, BatchPlan, Sampling
from maep.data.stream.streaming import StreamedImages, ThreadLoader
from maep.errors import DataError, UnavailableError
from maep.train.ray import loader as ray_loader
from maep.train.ray.loader import RayLoader

CPU = torch.device("cpu")
NUM = 96
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> StreamedImages:
    """A folder of three classes, the file 5 of which is no image."""
    root = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0).integers(0, 256, (NUM, 40, 48, 3), dtype=np.uint8)
    for k, pixels in enumerate(noise):
        folder = root / "imagenet" / "train" / "abc"[k % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:03}.png").write_bytes(encode_png(pixels) if k != 5 else b"no image")
    return StreamedImages(imagenet.train_shards(str(root)), 28, max_corrupt_share=0.1)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with cluster.session(None, 2):
        yield


def taken(loader: RayLoader | ThreadLoader, first: int, stop: int) -> list[BatchPart]:
    with closing(loader.parts(first, stop)) as parts:
        return list(parts)


def test_ray_and_stream_give_the_same_bits(images: StreamedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_loader, "SEGMENT", 5)  # so that one follows another
    sampling = Sampling(16, rank=1, size=2)
    by_ray = taken(RayLoader(images, sampling, CPU, LoaderConfig("ray")), 4, 16)
    by_threads = taken(ThreadLoader(images, sampling, CPU), 4, 16)
    assert sum(part.num_replaced for part in by_threads) > 0
    for ours, theirs in zip(by_ray, by_threads, strict=True):
        for key in ("pixels", "labels", "indices", "places"):
            assert torch.equal(getattr(ours, key), getattr(theirs, key))
        assert (ours.epoch, ours.num_replaced) == (theirs.epoch, theirs.num_replaced)


def test_memory_is_constant_over_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process and all of Ray's; an epoch is 385 MB of pixels, of which 19 may lie ready."""
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(32):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (240, 256, 3), dtype=np.uint8)).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    (tmp_path / "imagenet").mkdir()
    table = pa.table({"image": encoded * 80, "label": [0] * 2560})
    pq.write_table(table, tmp_path / "imagenet" / "train-0-of-1.parquet", row_group_size=32)
    monkeypatch.setattr(ray_loader, "SEGMENT", 20)  # four executions of Ray Data in the epoch
    images, settings = StreamedImages(imagenet.train_shards(str(tmp_path)), 224), LoaderConfig("ray", prefetch=2)
    loader, held = RayLoader(images, Sampling(32), CPU, settings), []
    with closing(loader.parts(0, loader.steps_per_epoch)) as parts:
        for part in parts:
            assert part.pixels.shape == (32, 224, 224, 3)
            held.append(memory_mib(os.getpid()))
    early, late = max(held[: len(held) // 4]), max(held)
    print(f"memory of the process and of Ray: {early:.0f} MiB after a quarter of {len(held)} steps, {late:.0f} at most")
    assert len(held) == 80
    assert late <= 1.05 * early


def test_error_in_a_task_is_raised_unchanged(images: StreamedImages) -> None:
    strict = StreamedImages(images.shards, 28)
    steps = BatchPlan(images.shards.sizes, Sampling(16)).steps_per_epoch
    with pytest.raises(DataError, match=r"^c/005\.png"):
        taken(RayLoader(strict, Sampling(16), CPU, LoaderConfig("ray")), 0, steps)


def test_missing_cpus_fail_immediately(images: StreamedImages) -> None:
    loader = RayLoader(images, Sampling(16), CPU, LoaderConfig("ray", cpus=64))
    with pytest.raises(UnavailableError, match=r"loader\.cpus: .*64"):
        taken(loader, 0, 1)


def test_parts_that_are_not_requested_are_not_read(images: StreamedImages, tmp_path: Path) -> None:
    class Counting(type(images.shards)):  # type: ignore[misc]
        def read(self, group: int) -> Any:
            (tmp_path / f"{group}").touch()
            return super().read(group)

    fields = {name: getattr(images.shards, name) for name in images.shards.__dataclass_fields__}  # type: ignore[attr-defined]
    counted = StreamedImages(Counting(**fields), 224, max_corrupt_share=0.1)
    loader = RayLoader(counted, Sampling(4), CPU, LoaderConfig("ray", prefetch=1))
    parts = loader.parts(0, NUM // 4)
    next(parts)
    import ray

    ray.get([ray.remote(num_cpus=0)(lambda: None).remote() for _ in range(4)])
    parts.close()
    assert 0 < len(list(tmp_path.iterdir())) < NUM
