"""Square crops of encoded images: a given box for training, the centre for evaluation."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from maep.data.reading.decoding import MAX_PIXELS, Undecodable, decode, open_image, orientation, to_rgb

RESIZE = 256 / 224
"""Ratio of the short side before the centre crop to the side of the crop, as ImageNet classifiers are evaluated."""
_ORIENTATION_MARKS = (b"Exif\0\0", b"tiff:Orientation")


class CropBox(NamedTuple):
    """The box to crop, in pixels of the whole image, and whether to mirror it left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


BoxOf = Callable[[tuple[int, int]], CropBox]
"""Maps the (height, width) of the upright image to a box."""
Decoded = tuple[NDArray[np.uint8], CropBox, int]
"""The image reduced by an integer factor, uint8 [H, W, 3]; the box, in pixels of the full image; the factor."""


def decode_crop(data: bytes, side: int, box_of: BoxOf) -> NDArray[np.uint8]:
    """uint8 [side, side, 3], RGB: a box of the image, resized (bicubic, antialiased) and mirrored if the box says so.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the box then still has `side` pixels in each direction; that
    changes values by half a grey level on average. Otherwise the result equals torchvision's resized_crop bit for bit.
    simplejpeg, if installed, decodes the same pixels faster than Pillow. Raises Undecodable.
    """
    pixels, box, shrink = _decode_fast(data, side, box_of) or _decode_by_pillow(data, side, box_of)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    if shrink > 1:  # edges may fall between pixels, which only Pillow supports
        whole = Image.fromarray(pixels)
        part = (edges[0] / shrink, edges[1] / shrink, edges[2] / shrink, edges[3] / shrink)
        resized = np.array(whole.resize((side, side), Image.Resampling.BICUBIC, box=part))
    else:
        resized = _resize(pixels[edges[1] : edges[3], edges[0] : edges[2]], side)
    made: NDArray[np.uint8] = torch.from_numpy(resized).flip(1).numpy() if box.flip else resized
    return made


def decode_centre(data: bytes, side: int) -> NDArray[np.uint8]:
    """uint8 [side, side, 3], RGB: the central square.

    The short side is first resized to side * 256/224 (bicubic, antialiased) if it exceeds that or is less than `side`.
    Raises Undecodable.
    """
    image = decode(data)
    short, wanted = min(image.size), round(side * RESIZE)
    if short > wanted or short < side:
        scale = wanted / short
        size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def _decode_fast(data: bytes, side: int, box_of: BoxOf) -> Decoded | None:
    """Decodes by simplejpeg; None if it is not installed, does not apply (PNG, CMYK, not upright) or reports damage."""
    library = _simplejpeg()
    if library is None:
        return None
    try:
        height, width, colours, _ = library.decode_jpeg_header(data)
        if colours in ("CMYK", "YCCK") or height * width > MAX_PIXELS:
            return None
        if any(mark in data for mark in _ORIENTATION_MARKS) and orientation(open_image(data)) != 1:
            return None
        box = box_of((height, width))
        shrink = _shrink(box, side)
        least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
        return library.decode_jpeg(data, "RGB", **least), box, shrink
    except (ValueError, Undecodable):
        return None


def _decode_by_pillow(data: bytes, side: int, box_of: BoxOf) -> Decoded:
    """Decodes by Pillow, which alone decides what is damaged. Raises Undecodable."""
    image = open_image(data)
    on_its_side = orientation(image) > 4
    box = box_of((image.width, image.height) if on_its_side else (image.height, image.width))
    shrink = _shrink(box, side) if image.format == "JPEG" else 1
    if shrink > 1:
        image.draft(None, (image.width // shrink, image.height // shrink))
    return np.array(to_rgb(image)), box, shrink


def _resize(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] -> [side, side, 3]: Pillow's result to within one grey level, in a quarter of the time."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]  # else it transposes twice
    resized = functional.interpolate(images, (side, side), mode="bicubic", antialias=True)[0]
    made: NDArray[np.uint8] = resized.permute(1, 2, 0).contiguous().numpy()
    return made


def _shrink(box: CropBox, side: int) -> int:
    """The largest factor by which libjpeg can reduce and still leave `side` pixels in each direction of the box."""
    return next(factor for factor in (8, 4, 2, 1) if factor == 1 or min(box.height, box.width) >= factor * side)


@functools.cache
def _simplejpeg() -> ModuleType | None:
    return importlib.import_module("simplejpeg") if importlib.util.find_spec("simplejpeg") else None
