"""Eight pictures for the page: one a class from the data set's `dev` split, or drawn ones where there is no data."""

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
    """A picture, uint8 [1, 3, H, W], and what it shows."""

    name: str
    pixels: torch.Tensor


def load_samples(data: DataConfig | None, image_size: tuple[int, int]) -> list[Sample]:
    """One image of each of the first classes of `data`; drawn pictures of `image_size` where it cannot be read."""
    if data is not None:
        try:
            return _from_data(data)
        except (DataError, OSError):
            pass
    return draw_samples(image_size)


def draw_samples(image_size: tuple[int, int]) -> list[Sample]:
    """Simple drawn pictures: a disc or a square of one colour before a shaded ground."""
    height, width = image_size
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    samples = []
    for number in range(NUM_SAMPLES):
        distance = np.hypot(rows, columns) if number % 2 == 0 else np.maximum(abs(rows), abs(columns))
        ground_HWC = (0.75 - 0.2 * rows[..., None]) * np.array(colorsys.hsv_to_rgb((number / 8 + 0.5) % 1, 0.25, 1))
        figure_HWC = (0.8 - 0.2 * columns[..., None]) * np.array(colorsys.hsv_to_rgb(number / 8, 0.7, 1))
        inside = np.clip((0.6 - distance) * max(height, 2) / 2 + 0.5, 0, 1)[..., None]
        picture_HWC = inside * figure_HWC + (1 - inside) * ground_HWC
        samples.append(Sample("disc" if number % 2 == 0 else "square", _pixels((picture_HWC * 255).astype(np.uint8))))
    return samples


def _from_data(data: DataConfig) -> list[Sample]:
    image_set = load(data, "dev")
    positions: dict[int, int] = {}
    for position, label in enumerate(np.asarray(image_set.labels)):
        positions.setdefault(int(label), position)
        if len(positions) >= max(NUM_SAMPLES, min(len(image_set.classes), 10)):
            break
    chosen = [positions[label] for label in sorted(positions)][:NUM_SAMPLES]
    pictures = np.asarray(image_set.images[np.array(chosen)])
    names = [image_set.classes[int(image_set.labels[position])] for position in chosen]
    return [Sample(str(name), _pixels(picture)) for name, picture in zip(names, pictures, strict=True)]


def _pixels(picture_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture_HWC.transpose(2, 0, 1))).unsqueeze(0)
