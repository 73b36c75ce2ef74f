"""The handwritten digits that come with scikit-learn: 1,797 grey 8x8 images, upscaled to 16x16 RGB."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maep import registry
from maep.data.config import DataConfig
from maep.data.image_set import ImageSet, Split
from maep.data.lists import read_indices

SIDE = 16
CLASSES = tuple("0123456789")


@registry.dataset("digits", num_classes=10, side=16)
def load(config: DataConfig, split: Split) -> ImageSet:
    """One split of the digits: train 1,197, dev 300, test 300, drawn once, stratified by class.

    Images uint8 [N, 16, 16, 3], three equal channels. Source: E. Alpaydin, C. Kaynak, Optical Recognition of
    Handwritten Digits, UCI 1998, as distributed with scikit-learn.
    """
    del config
    images, targets = _everything()
    indices = _indices(split, len(targets))
    return ImageSet(
        name="digits",
        split=split,
        images=images[indices],
        labels=targets[indices],
        indices=indices,
        classes=CLASSES,
        lossless=np.ones(len(indices), dtype=np.bool_),
    )


def labels() -> NDArray[np.int64]:
    """int64 [1797]: the labels of all images in scikit-learn's order, which defines the official indices."""
    return _everything()[1]


def _indices(split: Split, num: int) -> NDArray[np.int64]:
    if split != "train":
        return read_indices(f"digits-{split}")
    held_out = np.concatenate([read_indices("digits-dev"), read_indices("digits-test")])
    return np.setdiff1d(np.arange(num, dtype=np.int64), held_out)


@functools.cache
def _everything() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # imported here: other data sets do not need scikit-learn

    raw = load_digits()
    grey = np.round(raw.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    large = [np.asarray(Image.fromarray(g).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for g in grey]
    return np.repeat(np.stack(large)[..., None], 3, axis=-1), raw.target.astype(np.int64)
