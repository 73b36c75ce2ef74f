"""Example images of a purifier: clean, attacked and purified, with differences and predicted classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from maep.attacks.config import AttackConfig
from maep.data.image_set import ImageSet, to_float, to_uint8
from maep.evaluate.measure import ImageBatch, attack_images
from maep.evaluate.report import drawing

GAIN = 8
_HEADS = ("clean", "attacked", "purified", f"attack x{GAIN}", f"remaining x{GAIN}")
_RIGHT, _WRONG = "#147832", "#be1e1e"
_LONGEST_NAME = 14


def strip(
    classifier: nn.Module,
    purifier: nn.Module,
    clean: NDArray[np.uint8],
    attacked: NDArray[np.uint8],
    labels: Sequence[int],
    classes: Sequence[str],
) -> bytes:
    """A PNG with one row per image: clean, attacked, purified, and the differences of the last two from the clean one.

    `clean` and `attacked` are uint8 [N, H, W, 3]. The class that `classifier` predicts is below each of the first
    three: green if it is the label, red with a cross if not. Differences are amplified 8 times around grey.
    """
    with torch.no_grad():
        purified = to_uint8(purifier(to_float(torch.from_numpy(attacked)))).numpy()
        predicted = [
            classifier(to_float(torch.from_numpy(pixels))).argmax(dim=1).tolist()
            for pixels in (clean, attacked, purified)
        ]
    columns = (clean, attacked, purified, difference(attacked, clean), difference(purified, clean))
    with drawing.panels(len(clean), len(columns), side=1.0) as (figure, axes):
        for place, (head, pixels) in enumerate(zip(_HEADS, columns, strict=True)):
            axes[0, place].set_title(head, fontsize=9)
            for row, image in enumerate(pixels):
                axes[row, place].imshow(image)
                axes[row, place].set(xticks=[], yticks=[])
        for place, predictions in enumerate(predicted):
            for row, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
                name = classes[prediction] if prediction < len(classes) else str(prediction)
                text = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
                right = prediction == label
                axes[row, place].set_xlabel(
                    text if right else f"✗ {text}", color=_RIGHT if right else _WRONG, fontsize=8
                )
    return drawing.png(figure)


def one_of_each(images: ImageSet, count: int) -> ImageSet:
    """The first image of each of the first `count` classes."""
    classes = np.unique(images.labels)[:count]
    return images.select([int(np.flatnonzero(images.labels == label)[0]) for label in classes])


def attacked(model: nn.Module, images: ImageSet, config: AttackConfig, seed: int) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3]: `images` attacked on `model` (images to logits) as in an evaluation with that seed."""
    clean, labels = images.batch(range(len(images)))
    found = attack_images(model, ImageBatch(clean, labels, torch.from_numpy(images.indices)), config, seed)
    return to_uint8(found).numpy()


def difference(images: NDArray[np.uint8], originals: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3]: the difference, 8-fold, around mid-grey, clipped."""
    change = images.astype(np.int16) - originals.astype(np.int16)
    return np.clip(128 + GAIN * change, 0, 255).astype(np.uint8)
