from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maep.config import build
from maep.data.config import DataConfig
from maep.data.datasets import data_root, load
from maep.data.get import get
from maep.data.image_set import to_float, to_uint8
from maep.errors import ConfigError, DataError


def test_data_root_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEP_DATA", "/somewhere")
    assert data_root(DataConfig()) == Path("/somewhere")
    assert data_root(DataConfig(root="~/mine")) == Path("~/mine").expanduser()
    monkeypatch.delenv("MAEP_DATA")
    assert data_root(DataConfig()) == Path("data")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "cifar"}, "name"),
        ({"max_corrupt": -1}, "max_corrupt"),
        ({"name": "cifar10", "image_size": 64}, "image_size"),
        ({"name": "imagenet", "image_size": 0}, "image_size"),
    ],
)
def test_invalid_data_configuration_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(DataConfig, values, "data")


def test_selecting_takes_integers_masks_and_tensors() -> None:
    dev = load(DataConfig(), "dev")
    mask = dev.labels == 3
    assert (dev.select(mask).labels == 3).all()
    assert dev.select(mask).indices.tolist() == dev.select(torch.from_numpy(np.flatnonzero(mask))).indices.tolist()
    assert len(dev.select([])) == 0
    assert dev.batch([])[0].shape == (0, 3, 16, 16)


def test_batch_to_float_and_back_is_exact() -> None:
    dev = load(DataConfig(), "dev")
    images, labels = dev.batch(np.arange(8))
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert labels.dtype == torch.int64
    assert images.min() >= 0
    assert images.max() <= 1
    assert (to_uint8(images).numpy() == dev.pixels(np.arange(8))).all()
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert (to_uint8(to_float(every)) == every).all()


def test_the_fingerprint_tells_sets_apart() -> None:
    dev = load(DataConfig(), "dev")
    assert dev.fingerprint == load(DataConfig(), "dev").fingerprint
    assert dev.fingerprint != load(DataConfig(), "test").fingerprint
    assert dev.fingerprint != dev.select(np.arange(len(dev))[::-1]).fingerprint


def test_get_refuses_unknown_and_restricted_sets(tmp_path: Path) -> None:
    assert get("digits", tmp_path) == tmp_path
    with pytest.raises(ConfigError, match="cifar10"):
        get("cifar", tmp_path)
    with pytest.raises(DataError, match="imagenet"):
        get("imagenet", tmp_path)
    (tmp_path / "cifar10").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cifar10"):
        get("cifar10", tmp_path)
