"""No image that figures are reported on is trained on or chosen by."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import maep
from maep.data import lists
from maep.data.config import DataConfig
from maep.data.datasets import ImageSet, Split, load
from maep.data.sets import cifar10, digits, imagenet

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def pixel_rows(images: ImageSet) -> set[bytes]:
    return {image.tobytes() for image in images.pixels(np.arange(len(images)))}


def test_digits_are_split_once_stratified_and_disjoint() -> None:
    sets = {split: load(DataConfig("digits"), split) for split in SPLITS}
    assert [len(sets[split]) for split in SPLITS] == [1197, 300, 300]
    everything = np.concatenate([sets[split].indices for split in SPLITS])
    assert sorted(everything.tolist()) == list(range(1797))
    for split in ("dev", "test"):
        counts = Counter(sets[split].labels.tolist())
        assert set(counts) == set(range(10))
        assert max(counts.values()) - min(counts.values()) <= 2
    assert sets["train"].image_shape == (16, 16)
    assert sets["train"].images.dtype == np.uint8
    assert not pixel_rows(sets["test"]) & (pixel_rows(sets["train"]) | pixel_rows(sets["dev"]))


def test_dev_of_cifar10_is_a_committed_list_of_official_test_indices() -> None:
    dev = lists.named("cifar10-dev")
    assert len(set(dev.indices)) == len(dev) == 2000
    assert min(dev.indices) >= 0
    assert max(dev.indices) < 10_000
    assert len(cifar10.dev_labels()) == 2000


def test_every_official_test_image_is_either_dev_or_test() -> None:
    indices = np.arange(10_000)
    dev, test = cifar10.of_split(indices, "dev"), cifar10.of_split(indices, "test")
    assert (dev ^ test).all()
    assert (dev.sum(), test.sum()) == (2000, 8000)


def test_the_split_of_imagenet_holds_for_each_index_alone() -> None:
    indices = np.arange(50_000)
    dev, test = imagenet.of_split(indices, "dev"), imagenet.of_split(indices, "test")
    assert (dev ^ test).all()
    assert abs(dev.mean() - 2 / 9) < 0.01
    some = np.array([7, 49_999, 123])
    assert (imagenet.of_split(some, "dev") == dev[some]).all()


@pytest.mark.parametrize("name", [name for name in lists.names() if name != "cifar10-dev"])
def test_lists_for_choosing_share_no_image_with_lists_for_reporting(name: str) -> None:
    mine = lists.named(name)
    for other in map(lists.named, lists.names()):
        if other.dataset == mine.dataset and other.split != mine.split:
            assert not set(mine.indices) & set(other.indices)
    if mine.dataset == "cifar10":
        assert cifar10.of_split(np.array(mine.indices), mine.split).all()


def test_training_and_search_never_name_the_test_split() -> None:
    package = Path(maep.__file__).parent
    sources = [file for room in ("train", "tune", "models") for file in (package / room).rglob("*.py")]
    named = [file for file in sources if re.search(r"""["']test["']|-test-\d|digits-test""", file.read_text("utf-8"))]
    assert not named, f"the test split is for evaluation only: {named}"


@pytest.mark.shared_data
def test_no_test_image_of_cifar10_is_in_train_or_dev(shared_data: Path) -> None:
    sets = {split: load(DataConfig("cifar10", str(shared_data)), split) for split in SPLITS}
    assert [len(sets[split]) for split in SPLITS] == [50_000, 2_000, 7_000]
    assert not set(sets["dev"].indices) & set(sets["test"].indices)
    test = pixel_rows(sets["test"])
    assert len(test) == 7_000
    for split in ("train", "dev"):
        images = sets[split].images
        assert isinstance(images, np.ndarray)
        assert not any(image.tobytes() in test for image in images), f"a test image is in {split}"
    assert len({images.fingerprint for images in sets.values()}) == 3
    # The published statistics of the training set: the pixels are the official ones, in the right order of channels.
    images = sets["train"].images
    assert isinstance(images, np.ndarray)
    mean = images.reshape(-1, 3).mean(axis=0, dtype=np.float64) / 255
    assert mean == pytest.approx([0.491400, 0.482158, 0.446531], abs=2e-6)
    assert Counter(sets["train"].labels.tolist()) == dict.fromkeys(range(10), 5000)


@pytest.mark.shared_data
def test_dev_and_test_of_the_imagenet_slice_are_disjoint(shared_data: Path) -> None:
    config = DataConfig("imagenet", str(shared_data))
    dev, test = load(config, "dev"), load(config, "test")
    assert len(dev) + len(test) == 800
    assert not set(dev.indices) & set(test.indices)
    assert dev.classes[0] == "tench"
    images, labels = dev.batch([0, 5])
    assert images.shape == (2, 3, 224, 224)
    assert labels.tolist() == dev.labels[[0, 5]].tolist()


def test_digits_come_in_scikit_learns_order() -> None:
    from sklearn.datasets import load_digits

    assert (digits.labels() == load_digits().target).all()
