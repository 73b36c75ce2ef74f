"""The handwritten digits that come with scikit-learn: 1,797 grey 8x8 images, upscaled to 16x16 RGB."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maep.data.image_set import ImageSet, Split

SEED = 20240607
NUM_DEV = NUM_TEST = 300
SIDE = 16
CLASSES = tuple("0123456789")


def load(split: Split) -> ImageSet:
    """The split of the digits: train 1,197, dev 300, test 300, drawn once and stratified by class.

    Images uint8 [N, 16, 16, 3], three equal channels. Source: E. Alpaydin, C. Kaynak, Optical Recognition of
    Handwritten Digits, UCI 1998, as distributed with scikit-learn.
    """
    images, labels = _everything()
    indices = split_indices(labels)[split]
    return ImageSet(
        name="digits",
        split=split,
        images=images[indices],
        labels=labels[indices],
        indices=indices,
        classes=CLASSES,
        lossless=np.ones(len(indices), dtype=np.bool_),
    )


def split_indices(labels: NDArray[np.int64]) -> dict[Split, NDArray[np.int64]]:
    """Sorted official indices of each split, the same at every call.

    Within each class a fixed permutation is dealt to dev and test in proportion to the size of the class,
    by largest remainder, so that each of the two has exactly 300.
    """
    order = np.random.default_rng(SEED).permutation(len(labels))
    by_class = [order[labels[order] == k] for k in range(len(CLASSES))]
    sizes = np.array([len(members) for members in by_class])
    quota = sizes * NUM_DEV / sizes.sum()
    counts = np.floor(quota).astype(int)
    counts[np.argsort(counts - quota, kind="stable")[: NUM_DEV - counts.sum()]] += 1
    pairs = list(zip(by_class, counts, strict=True))
    parts: dict[Split, list[NDArray[np.int64]]] = {
        "dev": [members[:n] for members, n in pairs],
        "test": [members[n : 2 * n] for members, n in pairs],
        "train": [members[2 * n :] for members, n in pairs],
    }
    return {split: np.sort(np.concatenate(members)) for split, members in parts.items()}


@functools.cache
def _everything() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # imported here: training on CIFAR-10 needs no scikit-learn

    raw = load_digits()
    grey = np.round(raw.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    large = [np.asarray(Image.fromarray(g).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for g in grey]
    return np.repeat(np.stack(large)[..., None], 3, axis=-1), raw.target.astype(np.int64)
