"""Encoded images (PNG or JPEG) to pixels, refusing what does not decode."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch.nn import functional

from maep.data.stream.augmentation import CropBox

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 50_000_000
"""More pixels than this are not decoded: a few kB of PNG can unpack to gigabytes."""


class Undecodable(Exception):
    """Bytes that are not an image that can be used. The message is the reason, in a few words."""


def open_image(data: bytes) -> Image.Image:
    """The image with its header read and its size checked, pixels not decoded yet.

    Raises Undecodable for anything but PNG or JPEG, and for more than MAX_PIXELS.
    """
    if not data:
        raise Undecodable("no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # damaged bytes make Pillow raise a dozen unrelated types, among them SyntaxError
        raise Undecodable(_reason(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise Undecodable(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def decode(data: bytes) -> Image.Image:
    """The decoded image as RGB, or Undecodable."""
    image = open_image(data)
    try:
        return image.convert("RGB")
    except Exception as error:  # as above
        raise Undecodable(_reason(error)) from None


def decode_exact(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an image that must be `size` = (H, W), or Undecodable."""
    image = decode(data)
    if (image.height, image.width) != size:
        raise Undecodable(f"{image.width}x{image.height} pixels instead of {size[1]}x{size[0]}")
    return np.asarray(image)


def decode_crop(data: bytes, side: int, box_of: Callable[[tuple[int, int]], CropBox]) -> NDArray[np.uint8]:
    """uint8 [side, side, 3], RGB: a box of the image, resized (bicubic, antialiased), mirrored where the box says so.

    box_of   maps the whole image's (height, width) to the box
    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that still leaves `side` pixels in each direction of the box:
    half a grey level off on average. Else the result is, bit for bit, that of torchvision's resized_crop. simplejpeg,
    where it is installed, decodes the same pixels sooner than Pillow.
    Raises Undecodable.
    """
    pixels, box, shrink = _decode_soon(data, side, box_of) or _decode_surely(data, side, box_of)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    if shrink > 1:  # the edges need not fall on whole pixels, which only Pillow allows for
        whole = Image.fromarray(pixels)
        part = (edges[0] / shrink, edges[1] / shrink, edges[2] / shrink, edges[3] / shrink)
        resized = np.array(whole.resize((side, side), Image.Resampling.BICUBIC, box=part))
    else:
        resized = _resize(pixels[edges[1] : edges[3], edges[0] : edges[2]], side)
    made: NDArray[np.uint8] = torch.from_numpy(resized).flip(1).numpy() if box.flip else resized
    return made


Decoded = tuple[NDArray[np.uint8], CropBox, int]
"""uint8 [H, W, 3] of the whole image divided by the integer at the end, and the box, in pixels of the whole image."""


def _decode_soon(data: bytes, side: int, box_of: Callable[[tuple[int, int]], CropBox]) -> Decoded | None:
    """By simplejpeg; None where it is not installed, and for what it is not made for (PNG, CMYK) or finds damaged."""
    library = _simplejpeg()
    if library is None:
        return None
    try:
        height, width, colours, _ = library.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours in ("CMYK", "YCCK") or height * width > MAX_PIXELS:
        return None
    box = box_of((height, width))
    shrink = _shrink(box, side)
    try:
        least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
        return library.decode_jpeg(data, "RGB", **least), box, shrink
    except ValueError:
        return None


def _decode_surely(data: bytes, side: int, box_of: Callable[[tuple[int, int]], CropBox]) -> Decoded:
    """By Pillow, which alone decides what is damaged; Undecodable for that."""
    image = open_image(data)
    box = box_of((image.height, image.width))
    shrink = _shrink(box, side) if image.format == "JPEG" else 1
    try:
        if shrink > 1:
            image.draft(None, (image.width // shrink, image.height // shrink))
        return np.array(image.convert("RGB")), box, shrink
    except Exception as error:  # as above
        raise Undecodable(_reason(error)) from None


def _resize(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] -> [side, side, 3], as Pillow does it, give or take a grey level, at four times the pace."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]  # else it transposes twice
    resized = functional.interpolate(images, (side, side), mode="bicubic", antialias=True)[0]
    made: NDArray[np.uint8] = resized.permute(1, 2, 0).contiguous().numpy()
    return made


def _shrink(box: CropBox, side: int) -> int:
    """The largest reduction that libjpeg does fast and that leaves `side` pixels in each direction of the box."""
    return next(factor for factor in (8, 4, 2, 1) if factor == 1 or min(box.height, box.width) >= factor * side)


@functools.cache
def _simplejpeg() -> ModuleType | None:
    return importlib.import_module("simplejpeg") if importlib.util.find_spec("simplejpeg") else None


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "neither PNG nor JPEG"
    return " ".join(str(error).split()) or type(error).__name__
