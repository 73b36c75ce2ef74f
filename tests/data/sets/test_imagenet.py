from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.data.reading import decoding
from maep.data.sets import imagenet
from maep.errors import DataError

SYNSETS = ("n01440764", "n01443537", "n01484850")  # the first three of ImageNet-1k


def config(root: Path, **changes: Any) -> DataConfig:
    return DataConfig("imagenet", str(root), **{"image_size": 28, **changes})


def write_folder(
    root: Path, part: str, classes: tuple[str, ...], images: Any, encode: Any, suffix: str = ".JPEG"
) -> None:
    for k, pixels in enumerate(images):
        folder = root / "imagenet" / part / classes[k % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:03}{suffix}").write_bytes(encode(pixels, "PNG" if suffix == ".png" else "JPEG"))


def test_a_folder_of_classes_is_decoded_on_access(tmp_path: Path, noise: Any, encode: Any) -> None:
    write_folder(tmp_path, "train", SYNSETS, noise(6, 40, 50), encode)
    write_folder(tmp_path, "val", SYNSETS[:2], noise(60, 40, 50), encode)
    train, dev, test = (load(config(tmp_path), split) for split in ("train", "dev", "test"))
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.image_shape == (28, 28)
    assert not isinstance(train.images, np.ndarray)
    assert len(train.classes) == 1000
    assert len(dev) + len(test) == 60
    assert not set(dev.indices) & set(test.indices)
    part = test.select([4, 2])
    assert (part.pixels([0, 1]) == test.pixels([4, 2])).all()
    assert part.batch(np.arange(2))[0].shape == (2, 3, 28, 28)
    assert part.fingerprint != test.fingerprint


def test_removing_a_file_keeps_the_split_of_the_others(tmp_path: Path, noise: Any, encode: Any) -> None:
    write_folder(tmp_path, "val", SYNSETS, noise(40, 30, 30), encode)
    before = load(config(tmp_path), "test")
    (tmp_path / "imagenet" / "val" / SYNSETS[0] / "000.JPEG").unlink()
    after = load(config(tmp_path), "test")
    assert set(after.indices) <= set(before.indices)
    assert len(after) >= len(before) - 1


def test_own_classes_are_labelled_in_sorted_order(tmp_path: Path, noise: Any, encode: Any) -> None:
    write_folder(tmp_path, "train", ("b", "c", "a"), noise(3, 30, 30), encode, ".png")
    train = load(config(tmp_path), "train")
    assert train.classes == ("a", "b", "c")
    assert train.labels.tolist() == [0, 1, 2]
    assert train.corrupt == ()


def test_centre_crop_resizes_only_if_needed(tmp_path: Path, noise: Any, encode: Any) -> None:
    images = noise(1, 30, 31)
    write_folder(tmp_path, "train", ("a",), images, encode, ".png")
    assert (load(config(tmp_path), "train").pixels([0])[0] == images[0, 1:29, 1:29]).all()
    assert load(config(tmp_path, image_size=8), "train").pixels([0]).shape == (1, 8, 8, 3)
    assert load(config(tmp_path, image_size=64), "train").pixels([0]).shape == (1, 64, 64, 3)


def test_parquet_of_jpeg_bytes_is_read(tmp_path: Path, noise: Any, encode: Any, write_parquet: Any) -> None:
    images = [encode(each, "JPEG") for each in noise(30, 32, 32)]
    write_parquet(tmp_path / "imagenet" / "val.parquet", {"image": images, "label": list(range(30))})
    dev, test = load(config(tmp_path), "dev"), load(config(tmp_path), "test")
    assert sorted([*dev.indices, *test.indices]) == list(range(30))
    assert (test.labels == test.indices).all()
    assert test.fingerprint == load(config(tmp_path), "test").fingerprint
    with pytest.raises(DataError, match=r"data\.root"):
        load(config(tmp_path), "train")


@pytest.mark.parametrize("layout", ["parquet", "folder"])
def test_the_first_of_dev_are_those_of_the_split(
    layout: str, tmp_path: Path, noise: Any, encode: Any, write_parquet: Any
) -> None:
    """Without the whole of val being read: what pictures of a run on s3:// are drawn from."""
    images = noise(60, 32, 40)
    if layout == "parquet":
        columns = {"image": [encode(each, "JPEG") for each in images], "label": list(range(60))}
        write_parquet(tmp_path / "imagenet" / "val.parquet", columns)
    else:
        write_folder(tmp_path, "val", ("a", "b"), images, encode)
    dev = load(config(tmp_path), "dev")
    few = imagenet.first_of_dev(str(tmp_path), 3, 28)
    assert few.shape == (3, 28, 28, 3)
    assert (few == dev.pixels(range(3))).all()
    assert len(imagenet.first_of_dev(str(tmp_path), 1000, 28)) == len(dev)


def test_damaged_images_are_named_when_the_set_is_opened(tmp_path: Path, noise: Any, encode: Any) -> None:
    write_folder(tmp_path, "train", ("a",), noise(6, 30, 30), encode)
    folder = tmp_path / "imagenet" / "train" / "a"
    whole = (folder / "001.JPEG").read_bytes()
    (folder / "001.JPEG").write_bytes(whole[: len(whole) // 2])
    (folder / "002.JPEG").write_text("<html>404</html>")
    (folder / "003.JPEG").write_bytes(b"")
    (folder / "004.JPEG").write_bytes(whole + bytes(5000))  # trailing bytes do no harm
    with pytest.raises(DataError, match=r"3 corrupt .*a/001\.JPEG.*a/002\.JPEG.*a/003\.JPEG"):
        load(config(tmp_path), "train")
    train = load(config(tmp_path, max_corrupt=3), "train")
    assert len(train) == 3
    assert len(train.corrupt) == 3
    assert train.pixels([0, 1, 2]).shape == (3, 28, 28, 3)


def test_labels_out_of_range_are_corrupt(tmp_path: Path, noise: Any, encode: Any, write_parquet: Any) -> None:
    images = [encode(each, "JPEG") for each in noise(3, 32, 32)]
    write_parquet(tmp_path / "imagenet" / "train.parquet", {"image": images, "label": [0, 1000, 2]})
    with pytest.raises(DataError, match=r"train\.parquet row 1: .*1000"):
        load(config(tmp_path), "train")


def test_an_index_that_repeats_is_refused(tmp_path: Path, noise: Any, encode: Any, write_parquet: Any) -> None:
    images = [encode(each, "JPEG") for each in noise(2, 32, 32)]
    write_parquet(tmp_path / "imagenet" / "train.parquet", {"image": images, "label": [0, 1], "index": [5, 5]})
    with pytest.raises(DataError, match="index"):
        load(config(tmp_path), "train")


def test_a_file_that_vanishes_later_is_named(tmp_path: Path, noise: Any, encode: Any) -> None:
    write_folder(tmp_path, "train", ("a",), noise(2, 30, 30), encode)
    train = load(config(tmp_path), "train")
    (tmp_path / "imagenet" / "train" / "a" / "001.JPEG").unlink()
    with pytest.raises(DataError, match=r"a/001\.JPEG"):
        train.pixels([1])


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root"):
        load(config(tmp_path), "test")
    (tmp_path / "imagenet" / "val" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"data\.root"):
        load(config(tmp_path), "test")


def test_a_decompression_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch, encode: Any, noise: Any) -> None:
    data = encode(noise(1, 100, 100)[0])
    assert decoding.decode(data).size == (100, 100)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 9_999)
    with pytest.raises(decoding.Undecodable, match="100 x 100"):
        decoding.decode(data)


def test_grey_and_transparent_images_become_rgb(encode: Any, noise: Any) -> None:
    grey, clear = noise(1)[0, :, :, 0], np.concatenate([noise(1)[0], noise(1)[0, :, :, :1]], axis=-1)
    assert decoding.decode(encode(grey)).mode == "RGB"
    assert decoding.decode(encode(clear)).mode == "RGB"
