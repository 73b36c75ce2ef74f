"""A data set: grey stripes on 16 x 16 pixels, horizontal or vertical, drawn from a seed."""

from __future__ import annotations

import numpy as np

from maep import registry
from maep.data.config import DataConfig
from maep.data.image_set import ImageSet, Split

SIZES: dict[Split, int] = {"train": 256, "dev": 64, "test": 64}


@registry.dataset("stripes", num_classes=2, side=16)
def load(config: DataConfig, split: Split) -> ImageSet:
    """Every split is drawn anew, from a seed of its own; a data set on disk lies below `data_root(config)`."""
    del config
    count, first = SIZES[split], {"train": 0, "dev": 1000, "test": 2000}[split]
    draws = np.random.default_rng(first)
    labels = np.arange(count) % 2
    lines = draws.integers(64, 192, (count, 16))
    pixels = np.where(labels[:, None, None] == 0, lines[:, :, None], lines[:, None, :])
    return ImageSet(
        name="stripes",
        split=split,
        images=np.repeat(np.broadcast_to(pixels, (count, 16, 16))[..., None], 3, axis=-1).astype(np.uint8),
        labels=labels.astype(np.int64),
        indices=np.arange(first, first + count),
        classes=("horizontal", "vertical"),
        lossless=np.ones(count, dtype=np.bool_),
    )
