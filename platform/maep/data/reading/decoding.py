"""The one rule from an encoded image to RGB pixels, for training, evaluation, `maep purify` and the endpoint.

accepted   PNG, JPEG and WebP: grey, grey + alpha, palette, RGB or RGBA with at most 8 bits a channel
converted  grey and palette become RGB; transparency is composited on white; the EXIF orientation is applied
refused    CMYK, 16-bit and animated images (8-bit RGB would silently change what they mean), damaged files, and more
pixels than the caller's limit
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from maep.data.reading import webp

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
"""Lower-case file name suffixes of the accepted formats."""
MAX_PIXELS = 50_000_000
"""Limit for data sets: a few kB of PNG can decode to gigabytes."""
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_TAIL = 64
_ENDS = (b"\xff\xd9", b"IEND")

T = TypeVar("T")
Refusal = Literal["not-an-image", "too-many-pixels", "unsupported-image"]


class Undecodable(Exception):
    """An image is refused. The message gives the reason, `code` the kind of refusal."""

    def __init__(self, reason: str, code: Refusal = "not-an-image") -> None:
        super().__init__(reason)
        self.code: Refusal = code


def open_image(data: bytes, max_pixels: int | None = None) -> ImageFile:
    """Opens an image and checks its header without decoding pixels. Raises Undecodable.

    max_pixels  limit on width x height; None: MAX_PIXELS
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if webp.is_webp(data):
        header = _guarded(lambda: webp.read_header(data), "damaged header")
        _check_size(header.width, header.height, limit)
        _refuse_animation(header.animated)
    image = _guarded(lambda: _reader(data)(io.BytesIO(data)), "damaged header")
    _check_size(*image.size, limit)
    _refuse_animation(getattr(image, "n_frames", 1) > 1)
    # Pillow silently reads 16-bit RGB as 8-bit. Byte 24, in the IHDR chunk, is the bit depth.
    if image.mode not in _MODES or (data.startswith(PNG_START) and data[24] > 8):
        reason = f"mode {image.mode}: convert it to grey, palette, RGB or RGBA with 8 bits a channel"
        raise Undecodable(reason, "unsupported-image")
    return image


def to_rgb(image: ImageFile) -> Image.Image:
    """Decodes an opened image to upright, opaque RGB. Raises Undecodable if it is damaged; may change `image`."""
    return _guarded(lambda: _converted(image), "damaged")


def decode(data: bytes, max_pixels: int | None = None) -> Image.Image:
    """The image as RGB. Raises Undecodable."""
    return to_rgb(open_image(data, max_pixels))


def decode_exact(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an image that must be `size` = (H, W). Raises Undecodable."""
    image = decode(data)
    if (image.height, image.width) != size:
        raise Undecodable(f"{image.width}x{image.height} pixels instead of {size[1]}x{size[0]}")
    return np.asarray(image)


def check_label(label: int, num_classes: int) -> None:
    """Raises Undecodable for a label out of range: such an image is as unusable as a damaged one."""
    if not 0 <= label < num_classes:
        raise Undecodable(f"label {label} is not in 0..{num_classes - 1}")


def orientation(image: ImageFile) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where the metadata cannot be read."""
    try:
        return int(image.getexif().get(Base.Orientation, 1))
    except Exception:  # damaged metadata raises many types; the pixels may be sound
        return 1


def verify(data: bytes) -> None:
    """Raises Undecodable unless an image is accepted and whole. Decodes it only if its end looks damaged."""
    open_image(data)
    if not any(end in data[-_TAIL:] for end in _ENDS):
        decode(data)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _reader(data: bytes) -> type[ImageFile]:
    """Pillow's reader for these first bytes; no other format is ever tried."""
    if data.startswith(PNG_START):
        return PngImageFile
    if data.startswith(JPEG_START):
        return JpegImageFile
    if webp.is_webp(data):
        return WebPImageFile
    raise Undecodable("is not a PNG, JPEG or WebP" if data else "no bytes")


def _converted(image: ImageFile) -> Image.Image:
    image.load()
    if orientation(image) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_size(width: int, height: int, limit: int) -> None:
    if min(width, height) < 1:
        raise Undecodable("the image has no pixels")
    if width * height > limit:
        raise Undecodable(f"{width} x {height} pixels, more than {limit:,}", "too-many-pixels")


def _refuse_animation(animated: bool) -> None:
    if animated:
        raise Undecodable("animated: give one frame", "unsupported-image")


def _guarded(action: Callable[[], T], what: str) -> T:
    """The result of `action`; turns the many unrelated errors that Pillow raises for damaged bytes into Undecodable."""
    try:
        return action()
    except Undecodable:
        raise
    except Exception as error:
        raise Undecodable(f"{what}: {' '.join(str(error).split())[:200] or type(error).__name__}") from None
