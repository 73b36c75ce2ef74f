"""Training on streamed images: it finishes, resumes to identical bits, and counts corrupt images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from train_toys import Heard, Make, weights

from maep.data.reading.decoding import encode_png
from maep.errors import ArtifactError, ConfigError
from maep.train.build_tasks import pretraining
from maep.train.config import PretrainConfig
from maep.train.loop.run import run


@pytest.fixture
def streamed(pretrain: Make, tmp_path: Path) -> PretrainConfig:
    """The tiny pretraining on 80 PNGs in a folder of classes, one of which is no image."""
    for k, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (80, 20, 24, 3), dtype=np.uint8)):
        folder = tmp_path / "imagenet" / "train" / "abc"[k % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:03}.png").write_bytes(encode_png(pixels) if k else b"no image")
    data = {"name": "imagenet", "root": str(tmp_path), "image_size": 16, "max_corrupt_share": 0.05}
    settings: PretrainConfig = pretrain({"data": data}, augment=True)
    return settings


def test_a_stopped_run_on_streamed_images_ends_with_the_same_bits(
    streamed: PretrainConfig, pretrain: Make, tmp_path: Path
) -> None:
    heard = Heard()
    whole = run(pretraining(streamed), tmp_path / "whole", [heard])
    assert heard.steps[-1].metrics["corrupt"] >= 1
    with pytest.raises(KeyboardInterrupt):
        run(pretraining(streamed), tmp_path / "stopped", [Heard(stop_after_checkpoints=2)])
    result = run(pretraining(streamed), tmp_path / "stopped")
    assert weights(result) == weights(whole)
    assert result.sha256 == whole.sha256
    assert result.config["train"]["loader"] == {"kind": "auto"}  # how it reads decides; with how many threads does not
    assert "max_corrupt_share" not in result.config["train"]["data"]


def test_another_set_of_files_is_another_training(streamed: PretrainConfig, tmp_path: Path) -> None:
    run(pretraining(streamed), tmp_path / "out")
    (tmp_path / "imagenet" / "train" / "a" / "003.png").unlink()
    with pytest.raises(ArtifactError, match=r"data\.fingerprint="):
        run(pretraining(streamed), tmp_path / "out")


def test_batch_larger_than_the_data_set_is_refused(streamed: PretrainConfig, pretrain: Make, tmp_path: Path) -> None:
    values = {"name": "imagenet", "root": streamed.data.root, "image_size": 16}
    settings = pretrain({"data": values}, batch_size=128)
    with pytest.raises(ConfigError, match=r"loop\.batch_size: .*128.*80"):
        run(pretraining(settings), tmp_path / "out")
