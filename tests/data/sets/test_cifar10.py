from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maep.data import lists
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.data.get import get, write_cifar10
from maep.data.sets import cifar10
from maep.errors import DataError, UnavailableError

DEV = set(lists.named("cifar10-dev").indices)
TEST_ROWS = [k for k in range(40) if k not in DEV]


def config(root: Path, **changes: Any) -> DataConfig:
    return DataConfig("cifar10", str(root), **changes)


def hub_columns(images: Any, encode: Any) -> dict[str, Any]:
    labels = [0] * len(images)
    for index, label in zip(cifar10.dev_indices(), cifar10.dev_labels(), strict=True):
        if index < len(images):
            labels[index] = int(label)
    return {"img": [{"bytes": encode(each), "path": f"{k}.png"} for k, each in enumerate(images)], "label": labels}


def test_maep_layout_is_read_bit_for_bit(cifar_root: Callable[..., Path], noise: Any) -> None:
    root = cifar_root()
    train, dev, test = (load(config(root), split) for split in ("train", "dev", "test"))
    assert (train.images == noise(20, seed=1)).all()
    assert set(dev.indices) == DEV & set(range(40))
    assert test.indices.tolist() == TEST_ROWS
    assert (test.images == noise(40, seed=2)[TEST_ROWS]).all()
    assert test.labels.tolist() == [k % 10 for k in TEST_ROWS]
    assert test.classes[3] == "cat"
    images, labels = test.batch([1, 0])
    assert images.shape == (2, 3, 32, 32)
    assert (images.permute(0, 2, 3, 1).mul(255).round().numpy() == test.pixels([1, 0])).all()
    assert labels.tolist() == [TEST_ROWS[1] % 10, TEST_ROWS[0] % 10]


@pytest.mark.parametrize("folder", ["", "plain_text", "data"])
def test_hub_layout_is_read(tmp_path: Path, folder: str, noise: Any, encode: Any, write_parquet: Any) -> None:
    images = noise(40)
    where = tmp_path / "cifar10" / folder
    write_parquet(where / "test-00000-of-00001.parquet", hub_columns(images, encode))
    write_parquet(where / "train-00000-of-00001.parquet", hub_columns(images[:20], encode))
    test = load(config(tmp_path), "test")
    assert test.indices.tolist() == TEST_ROWS
    assert (test.images == images[TEST_ROWS]).all()
    assert len(load(config(tmp_path), "train")) == 20


def test_a_test_set_without_indices_in_another_order_is_refused(
    tmp_path: Path, noise: Any, encode: Any, write_parquet: Any
) -> None:
    columns = hub_columns(noise(40), encode)
    columns["label"] = columns["label"][::-1]
    write_parquet(tmp_path / "cifar10" / "test-00000-of-00001.parquet", columns)
    with pytest.raises(DataError, match="index"):
        load(config(tmp_path), "test")


def test_torchvision_folder_is_unpickled_only_if_official(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("test_batch", "batches.meta", *(f"data_batch_{k}" for k in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(_Bomb(tmp_path / "ran")))
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        load(config(tmp_path), "test")
    assert not (tmp_path / "ran").exists()


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_data_get_round_trip(tmp_path: Path, noise: Any) -> None:
    (tmp_path / "cifar10").mkdir()
    images, labels = noise(50), np.arange(50) % 10
    write_cifar10(images, labels, "train", tmp_path / "cifar10")
    assert len(list((tmp_path / "cifar10").iterdir())) == 5
    train = load(config(tmp_path), "train")
    assert (train.images == images).all()
    assert train.indices.tolist() == list(range(50))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": {TEST_ROWS[3]: b"not an image"}}, ""),
        ({"image": {TEST_ROWS[3]: b""}}, ""),
        ({"image": {TEST_ROWS[3]: None}}, ""),
        ({"label": {TEST_ROWS[3]: 10}}, "label 10"),
        ({"label": {TEST_ROWS[3]: -2}}, "label -2"),
        ({"label": {TEST_ROWS[3]: None}}, "label -1"),
        ({"index": {TEST_ROWS[3]: 10_000}}, "index 10000"),
        ({"index": {TEST_ROWS[3]: TEST_ROWS[0]}}, "index 0"),
    ],
)
def test_a_damaged_row_is_named_and_can_be_left_out(
    cifar_root: Callable[..., Path], changes: dict[str, Any], reason: str
) -> None:
    root = cifar_root(**changes)
    with pytest.raises(DataError, match=rf"1 corrupt .*test\.parquet row {TEST_ROWS[3]}: {reason}.*max_corrupt 1"):
        load(config(root), "test")
    test = load(config(root, max_corrupt=1), "test")
    assert len(test) == len(TEST_ROWS) - 1
    assert TEST_ROWS[3] not in test.indices
    assert len(test.corrupt) == 1


def test_truncated_and_oversized_images_are_corrupt(cifar_root: Callable[..., Path], noise: Any, encode: Any) -> None:
    whole = encode(noise(1)[0])
    large = encode(noise(1, 33, 32)[0])
    bad = {TEST_ROWS[0]: whole[: len(whole) // 2], TEST_ROWS[1]: large, TEST_ROWS[2]: whole[:-40] + bytes(40)}
    bad[TEST_ROWS[4]] = b"GIF89a" + bytes(100)
    root = cifar_root(image=bad)
    with pytest.raises(DataError, match=r"4 corrupt .*32x33 .*32x32") as caught:
        load(config(root), "test")
    assert "\n" not in str(caught.value)
    assert len(load(config(root, max_corrupt=4), "test").corrupt) == 4


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_missing_data_says_where_it_looked_and_what_to_do(tmp_path: Path, split: Any) -> None:
    with pytest.raises(DataError) as caught:
        load(config(tmp_path), split)
    for word in (str(tmp_path / "cifar10"), "$MAEP_DATA", "--data.root", "maep data get cifar10"):
        assert word in str(caught.value)


def test_empty_data_is_refused(tmp_path: Path, write_parquet: Any, encode: Any, noise: Any) -> None:
    empty = {"image": [], "label": [], "index": []}
    write_parquet(tmp_path / "cifar10" / "train.parquet", empty)
    with pytest.raises(DataError, match=r"train\.parquet"):
        load(config(tmp_path), "train")


def test_missing_part_is_refused(tmp_path: Path, noise: Any, encode: Any, write_parquet: Any) -> None:
    write_parquet(tmp_path / "cifar10" / "train-0-of-5.parquet", {"image": [encode(noise(1)[0])], "label": [0]})
    with pytest.raises(DataError, match=r"train-0-of-5\.parquet"):
        load(config(tmp_path), "train")


def test_foreign_parquet_files_are_named(tmp_path: Path, write_parquet: Any) -> None:
    file = write_parquet(tmp_path / "cifar10" / "test.parquet", {"picture": [b"x"], "label": [0]})
    with pytest.raises(DataError, match=r"test\.parquet: .*image.*label.*picture"):
        load(config(tmp_path), "test")
    file.write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"test\.parquet"):
        load(config(tmp_path), "test")
    write_parquet(file, {"image": [b"x"], "label": ["cat"]})
    with pytest.raises(DataError, match=r"test\.parquet"):
        load(config(tmp_path), "test")


def test_failed_download_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The address is one that nothing listens at: the real downloader fails as it does without a network.
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(UnavailableError, match="CIFAR-10"):
        get("cifar10", tmp_path)
    assert list((tmp_path / "cifar10").iterdir()) == []
