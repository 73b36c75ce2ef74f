"""Images that are streamed from shards: the same whoever reads them, damage counted or named, little in memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from maep.data import datasets
from maep.data.config import DataConfig, LoaderConfig
from maep.data.reading.parquet import manifest_name
from maep.data.stream.loaders import loader_rate, open_images, resolved, sample
from maep.data.stream.plan import BatchPart, Sampling
from maep.data.stream.resident import ResidentLoader, SyntheticImages, SyntheticLoader
from maep.data.stream.streaming import StreamedImages, ThreadLoader
from maep.errors import ConfigError, DataError

CPU = torch.device("cpu")
Make = Callable[..., DataConfig]


@pytest.fixture
def packed(tmp_path: Path, noise: Any, encode: Any) -> Make:
    """Writes two files of 36 and 20 JPEGs in row groups of 8, `damaged` rows of the first cut short; its settings."""

    def make(damaged: tuple[int, ...] = (), **changes: Any) -> DataConfig:
        first = 0
        for part, count in enumerate((36, 20)):
            images = [encode(each, "JPEG") for each in noise(count, 40, 48, seed=part)]
            if part == 0:
                for row in damaged:
                    images[row] = images[row][:200]
            columns = {"image": images, "label": [k % 10 for k in range(count)], "index": range(first, first + count)}
            folder = tmp_path / "imagenet"
            folder.mkdir(exist_ok=True)
            table = pa.table({name: pa.array(values) for name, values in columns.items()})
            pq.write_table(table, folder / f"train-{part}-of-2.parquet", row_group_size=8)
            first += count
        return DataConfig("imagenet", str(tmp_path), image_size=28, **changes)

    return make


def opened(data: DataConfig) -> StreamedImages:
    images = open_images(LoaderConfig("stream"), data)
    assert isinstance(images, StreamedImages)
    return images


def parts(images: StreamedImages, first: int, stop: int, threads: int = 2, **sampling: Any) -> list[BatchPart]:
    loader = ThreadLoader(images, Sampling(**{"batch_size": 16, **sampling}), CPU, threads, prefetch=2)
    with closing(loader.parts(first, stop)) as given:
        return list(given)


def same(some: list[BatchPart], others: list[BatchPart]) -> bool:
    return len(some) == len(others) and all(
        torch.equal(getattr(a, key), getattr(b, key))
        for a, b in zip(some, others, strict=True)
        for key in ("pixels", "labels", "indices", "places")
    )


def by_index(given: list[BatchPart]) -> dict[int, torch.Tensor]:
    return {int(i): pixels for part in given for i, pixels in zip(part.indices, part.pixels, strict=True)}


def test_every_image_comes_once_an_epoch_with_its_label(packed: Make) -> None:
    images = opened(packed())
    assert len(images) == 56
    given = parts(images, 0, 3)
    indices = torch.cat([part.indices for part in given])
    labels = torch.cat([part.labels for part in given])
    assert len(set(indices.tolist())) == 48
    assert labels.tolist() == [(i if i < 36 else i - 36) % 10 for i in indices.tolist()]
    assert given[0].pixels.shape == (16, 28, 28, 3)
    assert given[0].pixels.dtype == torch.uint8
    assert [part.epoch for part in parts(images, 2, 5)] == [0, 1, 1]


def test_run_resumes_at_any_step_with_the_same_bits(packed: Make) -> None:
    images = opened(packed())
    whole = parts(images, 0, 8)
    assert same(parts(images, 5, 8, threads=1), whole[5:])
    assert not same(parts(images, 0, 3, seed=1), whole[:3])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_workers_partition_the_batches_of_one_worker(size: int, packed: Make) -> None:
    images = opened(packed())
    for step, whole in enumerate(parts(images, 0, 5)):
        shared = [parts(images, step, step + 1, rank=rank, size=size)[0] for rank in range(size)]
        for key in ("pixels", "labels", "indices", "places"):
            assert torch.equal(torch.cat([getattr(part, key) for part in shared]), getattr(whole, key))


def test_augmentation_changes_with_the_epoch_and_can_be_left_out(packed: Make) -> None:
    images = opened(packed())
    plain = by_index(parts(images, 0, 6, augment=False))
    first, second = by_index(parts(images, 0, 3)), by_index(parts(images, 3, 6))
    both = first.keys() & second.keys() & plain.keys()
    assert len(both) > 30
    assert sum(torch.equal(first[i], second[i]) for i in both) == 0
    centre = dict(zip(range(2), sample(images, 2), strict=True))
    for index in centre.keys() & plain.keys():
        assert (plain[index].numpy() == centre[index]).all()


def test_a_corrupt_image_is_replaced_by_the_next_one_and_counted(packed: Make) -> None:
    data = packed(damaged=(3, 4), max_corrupt_share=0.05)
    given = parts(opened(data), 0, 3)
    indices = torch.cat([part.indices for part in given]).tolist()
    assert not {3, 4} & set(indices)
    replaced = sum(part.num_replaced for part in given)
    assert 0 < replaced <= 2
    assert indices.count(5) == 1 + replaced
    assert same(parts(opened(data), 0, 3, threads=1), given)


def test_too_many_corrupt_images_are_an_error(packed: Make) -> None:
    with pytest.raises(DataError, match=r"train-0-of-2\.parquet row [34]: .*epoch 0.*max_corrupt_share"):
        parts(opened(packed(damaged=(3, 4))), 0, 3)
    with pytest.raises(DataError, match=r"row \d+"):
        parts(opened(packed(damaged=tuple(range(20)), max_corrupt_share=0.9)), 0, 3)


def test_a_shard_that_is_empty_or_damaged_is_named(packed: Make, tmp_path: Path) -> None:
    data = packed()
    file = tmp_path / "imagenet" / "train-1-of-2.parquet"
    whole = file.read_bytes()
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    with pytest.raises(DataError, match=r"train-1-of-2\.parquet"):
        opened(data)
    file.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"train-1-of-2\.parquet"):
        opened(data)
    file.unlink()
    with pytest.raises(DataError, match=r"train-0-of-2\.parquet"):
        opened(data)


def test_damage_inside_a_shard_is_named_when_it_is_read(packed: Make, tmp_path: Path) -> None:
    data = packed()
    images = opened(data)
    file = tmp_path / "imagenet" / "train-0-of-2.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(2000) + content[2004:])
    with pytest.raises(DataError, match=r"train-0-of-2\.parquet"):
        parts(images, 0, 3)


def test_few_parts_are_in_memory_and_closing_ends_the_threads(packed: Make) -> None:
    images = opened(packed())
    began: list[int] = []

    class Counting(type(images.shards)):  # type: ignore[misc]
        def read(self, group: int) -> Any:
            began.append(group)
            return super().read(group)

    counting = Counting(**{name: getattr(images.shards, name) for name in images.shards.__dataclass_fields__})  # type: ignore[attr-defined]
    loader = ThreadLoader(replace(images, shards=counting), Sampling(8, augment=False), CPU, threads=1, prefetch=1)
    given = loader.parts(0, 70)
    next(given)
    given.close()
    assert len(began) <= 3 * 3  # three parts, each of at most three groups
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("maep-decode")]


def test_a_folder_of_classes_is_streamed_file_by_file(tmp_path: Path, noise: Any, encode: Any) -> None:
    for k, pixels in enumerate(noise(24, 40, 48)):
        folder = tmp_path / "imagenet" / "train" / "abc"[k % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:02}.JPEG").write_bytes(encode(pixels, "JPEG"))
    data = DataConfig("imagenet", str(tmp_path), image_size=28)
    images = opened(data)
    loaded = datasets.load(data, "train")
    assert images.classes == loaded.classes
    label = dict(zip(loaded.indices.tolist(), loaded.labels.tolist(), strict=True))
    (part,) = parts(images, 0, 1, batch_size=24)
    assert {int(i): int(k) for i, k in zip(part.indices, part.labels, strict=True)} == label
    (tmp_path / "imagenet" / "train" / "a" / "00.JPEG").unlink()
    with pytest.raises(DataError, match=r"a/00\.JPEG: .*epoch 0"):
        parts(images, 0, 1, batch_size=24)
    (part,) = parts(replace(images, max_corrupt_share=0.1), 0, 1, batch_size=24)
    assert part.num_replaced == 1
    assert len(set(part.indices.tolist())) == 23


def test_the_slice_can_be_named_to_train_on(shared_data: Path) -> None:
    data = DataConfig("imagenet", str(shared_data), train_files="imagenet_slice/val_256.parquet")
    images = opened(data)
    assert len(images) == 800
    assert images.shards.sizes.tolist() == [100] * 8
    (part,) = parts(images, 0, 1, batch_size=8)
    rows = datasets.load(data, "test").labels
    assert part.pixels.shape == (8, 224, 224, 3)
    assert set(part.labels.tolist()) <= set(range(1000))
    assert len(rows)
    with pytest.raises(DataError, match=r"data\.train_files: .*imagenet_slice/nothing"):
        opened(replace(data, train_files="imagenet_slice/nothing.parquet"))


def test_the_manifest_of_these_files_is_the_fingerprint(packed: Make, tmp_path: Path) -> None:
    data = packed()
    before = opened(data).fingerprint
    assert opened(data).fingerprint == before
    manifest = tmp_path / "imagenet" / manifest_name("train")
    files = {file.name: {"rows": 1} for file in manifest.parent.glob("*.parquet")}
    manifest.write_text(json.dumps({"files": files}))
    named = opened(data).fingerprint
    assert named != before
    manifest.write_text(json.dumps({"files": files, "images": 1}))
    assert opened(data).fingerprint not in (named, before)
    manifest.write_text("damaged")
    assert opened(data).fingerprint == before


def test_shard_that_differs_from_the_manifest_is_named(packed: Make, tmp_path: Path) -> None:
    data = packed()
    folder = tmp_path / "imagenet"
    sizes = {file.name: {"size": file.stat().st_size} for file in folder.glob("*.parquet")}
    name = min(sizes)
    for wrong, said in (
        ({"another.parquet": {"size": 1}}, r"another\.parquet"),
        ({name: {"size": 7}}, rf"{name} .*\b7\b"),
    ):
        (folder / manifest_name("train")).write_text(json.dumps({"files": sizes | wrong}))
        with pytest.raises(DataError, match=said):
            opened(data)
        with pytest.raises(DataError, match=said):
            datasets.load(DataConfig("imagenet", str(tmp_path), image_size=16), "train")
    asked_for = replace(data, train_files="imagenet/train*.parquet")  # some of them may be what is wanted
    assert len(opened(asked_for)) == 56


def test_streamed_corruption_is_limited_by_share() -> None:
    data = DataConfig("imagenet", max_corrupt=3)
    with pytest.warns(UserWarning, match=r"data\.max_corrupt: 3 .*max_corrupt_share"):
        resolved(LoaderConfig("stream"), data, on_ray=False)
    resolved(LoaderConfig("stream"), replace(data, max_corrupt_share=0.01), on_ray=False)
    resolved(LoaderConfig("resident"), data, on_ray=False)


def test_auto_kind_depends_on_data_and_ray() -> None:
    auto, cifar, net = LoaderConfig(), DataConfig("cifar10"), DataConfig("imagenet")
    assert resolved(auto, cifar, on_ray=True).kind == "resident"
    assert resolved(auto, net, on_ray=True).kind == "ray"
    assert resolved(auto, net, on_ray=False).kind == "stream"
    with pytest.raises(ConfigError, match=r"loader\.kind: stream"):
        resolved(LoaderConfig("stream"), cifar, on_ray=False)
    with pytest.raises(ConfigError, match=r"loader\.kind: ray"):
        resolved(LoaderConfig("ray"), net, on_ray=False)
    with pytest.raises(ConfigError, match=r"data\.train_files"):
        resolved(LoaderConfig("resident"), DataConfig("imagenet", train_files="a.parquet"), on_ray=False)


def test_set_larger_than_memory_is_refused(packed: Make) -> None:
    images = datasets.load(packed(), "train")
    with pytest.raises(DataError, match=r"loader\.kind stream"):
        ResidentLoader(images, Sampling(8), CPU, memory_share=1e-9)
    loader = ResidentLoader(images, Sampling(8, augment=False), CPU)
    first = loader.part(0)
    assert (first.pixels.numpy() == images.pixels(loader.positions(0))).all()


def test_synthetic_loader_reads_nothing() -> None:
    images = open_images(LoaderConfig("synthetic"), DataConfig("imagenet", "nowhere"))
    assert isinstance(images, SyntheticImages)
    assert images.image_shape == (224, 224)
    loader = SyntheticLoader(images, Sampling(8, rank=1, size=2), CPU)
    one, two = loader.parts(3, 5)
    assert torch.equal(one.pixels, two.pixels)
    assert one.pixels.shape == (4, 224, 224, 3)
    assert one.places.tolist() == [1, 3, 5, 7]
    assert loader_rate(loader, 4, 3) > 0
    assert np.unique(one.pixels.numpy()).size > 200
