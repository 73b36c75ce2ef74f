from __future__ import annotations

from collections import Counter
from importlib import resources
from pathlib import Path

import make_lists
import pytest

from maep.data import lists
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.errors import ConfigError, DataError

SIZES = {
    "cifar10-dev": 2000,
    "cifar10-dev-1000": 1000,
    "cifar10-dev-500": 500,
    "cifar10-test-1000": 1000,
    "cifar10-test-256": 256,
    "digits-dev": 300,
    "digits-test": 300,
    "imagenet-slice-dev-128": 128,
    "imagenet-slice-test-256": 256,
}


def test_image_list_names_and_lengths() -> None:
    assert {name: len(lists.named(name)) for name in lists.names()} == SIZES
    assert all(len(set(lists.named(name).indices)) == size for name, size in SIZES.items())
    assert len({lists.named(name).sha256 for name in SIZES}) == len(SIZES)


@pytest.mark.parametrize(
    ("short", "long"), [("cifar10-test-256", "cifar10-test-1000"), ("cifar10-dev-500", "cifar10-dev-1000")]
)
def test_the_shorter_list_is_the_beginning_of_the_longer(short: str, long: str) -> None:
    few, many = lists.named(short), lists.named(long)
    assert few.indices == many.indices[: len(few)]
    assert few.sha256 != many.sha256


def test_list_sha256_covers_split_and_order() -> None:
    one = lists.make("a", "digits", "dev", (1, 2))
    assert one.sha256 == lists.make("b", "digits", "dev", (1, 2)).sha256
    assert one.sha256 != lists.make("a", "digits", "dev", (2, 1)).sha256
    assert one.sha256 != lists.make("a", "digits", "test", (1, 2)).sha256


def test_an_unknown_list_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="cifar10-test-1000"):
        lists.named("cifar10-test-100")


def test_picking_keeps_the_order_of_the_list() -> None:
    dev = load(DataConfig("digits"), "dev")
    wanted = tuple(int(index) for index in dev.indices[[9, 3, 7]])
    picked = lists.pick(dev, lists.make("mine", "digits", "dev", wanted))
    assert tuple(picked.indices) == wanted
    assert (picked.pixels([1]) == dev.pixels([3])).all()


def test_pick_names_missing_images() -> None:
    dev, test = load(DataConfig("digits"), "dev"), load(DataConfig("digits"), "test")
    with pytest.raises(DataError, match="99999"):
        lists.pick(dev, lists.make("mine", "digits", "dev", (int(dev.indices[0]), 99_999)))
    with pytest.raises(DataError, match=r"digits dev.*digits test"):
        lists.pick(test, lists.named("digits-dev"))


@pytest.mark.shared_data
def test_lists_are_balanced_lossless_and_reproducible(shared_data: Path, tmp_path: Path) -> None:
    folder = resources.files("maep.data").joinpath("lists")
    for made in make_lists.make_all(shared_data):
        assert made == lists.named(made.name)
        make_lists.write(made, tmp_path)
        assert (tmp_path / f"{made.name}.txt").read_text() == folder.joinpath(f"{made.name}.txt").read_text()
    assert make_lists.cifar10_dev_labels(shared_data) == folder.joinpath("cifar10-dev.labels").read_text()
    for split in ("dev", "test"):
        images = load(DataConfig("cifar10", str(shared_data)), split)
        for name in (name for name in SIZES if name.startswith(f"cifar10-{split}-")):
            picked = lists.pick(images, lists.named(name))
            assert picked.lossless.all()
            counts = Counter(picked.labels.tolist())
            assert max(counts.values()) - min(counts.values()) <= 1
            assert len(counts) == 10
