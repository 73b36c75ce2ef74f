"""One worker's part of a training step, and the random draws that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from maep import seeding
from maep.models.mae import MaskedAutoencoder

# purposes of random draws; draws for different purposes are independent
MASK, START, NOISE, NOISE_SIZE, EPS, STEPS, CLASSIFIER, GLOBAL, VERDICT = range(1, 10)


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step."""

    images: Tensor
    """float [B, 3, H, W] in [0, 1], clean, augmented."""
    labels: Tensor
    """int64 [B]."""
    keys: Tensor
    """int64 [B]: a key for each image and epoch, which seeds its draws."""
    step_key: int
    """A key of the whole step, the same on every worker."""
    places: Tensor
    """int64 [B]: the position of each image in the batch of all workers together."""
    size: int
    """Images in that batch."""
    progress: float
    """Share of the run that is complete, in [0, 1]."""
    replay: int = 0
    """Number of this update among the updates on the batch, from 0."""
    attacked: Tensor | None = None
    """float [B, 3, H, W] in [0, 1]: the attacked images, which `craft` makes."""
    wanted: tuple[Tensor, Tensor] | None = None
    """The teacher's logits and features of the clean images."""

    def select(self, rows: Tensor | slice) -> Batch:
        """The part with the images at `rows`, an int64 tensor or a slice."""
        changes: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = value[rows]
            elif isinstance(value, tuple):
                changes[field.name] = tuple(tensor[rows] for tensor in value)
        return replace(self, **changes)


def mask_noise(mae: MaskedAutoencoder, batch: Batch) -> Tensor:
    """float [B, L] in [0, 1), the noise by which `mae` chooses the patches to hide."""
    height, width = batch.images.shape[2:]
    num_patches = (height // mae.config.patch_size) * (width // mae.config.patch_size)
    return seeding.uniform(seeding.mix(batch.keys, MASK, batch.replay), num_patches)


def draw(batch: Batch, purpose: int) -> float:
    """One random number in [0, 1) for the whole step."""
    return float(seeding.uniform(seeding.mix(batch.step_key, purpose)[None], 1))
