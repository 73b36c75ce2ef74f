"""Encoded images (PNG or JPEG) to pixels, refusing what does not decode."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from maep.data.augmentation import CropBox

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
    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that still leaves `side` pixels in each direction of the box.
    Raises Undecodable.
    """
    image = open_image(data)
    size = image.size
    box = box_of((image.height, image.width))
    try:
        shrink = max(1, min(box.height, box.width) // side)
        drafted = image.draft(None, (max(1, image.width // shrink), max(1, image.height // shrink)))
        scale = drafted[1][2] / size[0] if drafted else 1.0  # what is not a JPEG comes as it is
        left, top = box.left * scale, box.top * scale
        part = (left, top, left + box.width * scale, top + box.height * scale)
        resized = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box=part)
    except Exception as error:  # as above
        raise Undecodable(_reason(error)) from None
    pixels = np.asarray(resized)
    return np.ascontiguousarray(pixels[:, ::-1]) if box.flip else pixels


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "neither PNG nor JPEG"
    return " ".join(str(error).split()) or type(error).__name__
