"""Example images of a purifier: clean, attacked and purified, with differences and predicted classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from maep.attacks.config import AttackConfig
from maep.data.image_set import ImageSet, to_float, to_uint8
from maep.evaluate.measure import ImageBatch, attack_images, round_to_budget

GAIN = 8
_HEADS = ("clean", "attacked", "purified", f"attack x{GAIN}", f"remaining x{GAIN}")
_RIGHT, _WRONG, _INK, _PAPER = (20, 120, 50), (190, 30, 30), (40, 40, 40), (255, 255, 255)
_SIDE, _GAP, _LINE, _FONT = 112, 10, 20, 13


def strip(
    classifier: nn.Module,
    purifier: nn.Module,
    clean: NDArray[np.uint8],
    attacked: NDArray[np.uint8],
    labels: Sequence[int],
    classes: Sequence[str],
) -> Image.Image:
    """One row per image: clean, attacked, purified, and the differences of the last two from the clean image.

    `clean` and `attacked` are uint8 [N, H, W, 3]. The class that `classifier` predicts is below each of the first
    three: green if correct, red and underlined if wrong. Differences are amplified 8 times around grey.
    """
    with torch.no_grad():
        purified = to_uint8(purifier(to_float(torch.from_numpy(attacked)))).numpy()
        seen = [
            classifier(to_float(torch.from_numpy(pixels))).argmax(dim=1).tolist()
            for pixels in (clean, attacked, purified)
        ]
    columns = (clean, attacked, purified, difference(attacked, clean), difference(purified, clean))
    width = _GAP + len(columns) * (_SIDE + _GAP)
    canvas = Image.new("RGB", (width, _LINE + _GAP + len(clean) * (_SIDE + _LINE + _GAP)), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    for place, head in enumerate(_HEADS):
        _write(draw, font, head, place, _GAP // 2, _INK)
    for row in range(len(clean)):
        top = _LINE + _GAP + row * (_SIDE + _LINE + _GAP)
        for place, pixels in enumerate(columns):
            panel = Image.fromarray(pixels[row]).resize((_SIDE, _SIDE), _filter(pixels.shape[1]))
            canvas.paste(panel, (_GAP + place * (_SIDE + _GAP), top))
        for place, predictions in enumerate(seen):
            colour = _RIGHT if predictions[row] == int(labels[row]) else _WRONG
            name = classes[predictions[row]] if predictions[row] < len(classes) else str(predictions[row])
            _write(draw, font, name, place, top + _SIDE + 1, colour)
    return canvas


def one_of_each(images: ImageSet, count: int) -> ImageSet:
    """The first image of each of the first `count` classes."""
    classes = np.unique(images.labels)[:count]
    return images.select([int(np.flatnonzero(images.labels == label)[0]) for label in classes])


def attacked(model: nn.Module, images: ImageSet, config: AttackConfig, seed: int) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3]: `images` attacked on `model` (images to logits) as in an evaluation with that seed."""
    clean, labels = images.batch(range(len(images)))
    found = attack_images(model, ImageBatch(clean, labels, torch.from_numpy(images.indices)), config, seed)
    return to_uint8(round_to_budget(found, clean, config.eps)).numpy()


def difference(images: NDArray[np.uint8], originals: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3]: the difference times 8 around mid-grey, clipped."""
    change = images.astype(np.int16) - originals.astype(np.int16)
    return np.clip(128 + GAIN * change, 0, 255).astype(np.uint8)


def _filter(side: int) -> Image.Resampling:
    """Enlarges small images without smoothing."""
    return Image.Resampling.NEAREST if side < _SIDE else Image.Resampling.LANCZOS


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text: str,
    place: int,
    top: int,
    colour: tuple[int, int, int],
) -> None:
    left = _GAP + place * (_SIDE + _GAP)
    while text and draw.textlength(text, font) > _SIDE:
        text = text[:-2] + "…" if len(text) > 2 else ""
    length = draw.textlength(text, font)
    start = left + (_SIDE - length) / 2
    draw.text((start, top), text, colour, font)
    if colour == _WRONG:  # visible without colour
        draw.line((start, top + _FONT + 3, start + length, top + _FONT + 3), colour)
