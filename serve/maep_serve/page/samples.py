"""The page's eight sample images: one per class from the data set's `dev` split, or synthetic ones without data."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import torch

from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.errors import DataError

NUM_SAMPLES = 8


@dataclass(frozen=True)
class Sample:
    """An image, uint8 [1, 3, H, W], and the name of what it shows."""

    name: str
    pixels: torch.Tensor


def load_samples(data: DataConfig | None, image_size: tuple[int, int]) -> list[Sample]:
    """One image of each of the first classes of `data`; synthetic images of `image_size` if it cannot be read."""
    if data is not None:
        try:
            return _from_data(data)
        except (DataError, OSError):
            pass
    return draw_samples(image_size)


def draw_samples(image_size: tuple[int, int]) -> list[Sample]:
    """Synthetic images: a disc or a square of one colour on a shaded background."""
    height, width = image_size
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    samples = []
    for number in range(NUM_SAMPLES):
        distance = np.hypot(rows, columns) if number % 2 == 0 else np.maximum(abs(rows), abs(columns))
        background_HWC = (0.75 - 0.2 * rows[..., None]) * np.array(colorsys.hsv_to_rgb((number / 8 + 0.5) % 1, 0.25, 1))
        figure_HWC = (0.8 - 0.2 * columns[..., None]) * np.array(colorsys.hsv_to_rgb(number / 8, 0.7, 1))
        inside = np.clip((0.6 - distance) * max(height, 2) / 2 + 0.5, 0, 1)[..., None]
        image_HWC = inside * figure_HWC + (1 - inside) * background_HWC
        samples.append(Sample("disc" if number % 2 == 0 else "square", _pixels((image_HWC * 255).astype(np.uint8))))
    return samples


def _from_data(data: DataConfig) -> list[Sample]:
    image_set = load(data, "dev")
    labels, first = np.unique(np.asarray(image_set.labels), return_index=True)
    chosen = list(zip(labels.tolist(), first.tolist(), strict=True))[:NUM_SAMPLES]
    return [Sample(str(image_set.classes[label]), _pixels(np.asarray(image_set.images[at]))) for label, at in chosen]


def _pixels(image_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1))).unsqueeze(0)
