"""Image bytes to tensors and back, for HTTP: the pixel rule of `maep.data.reading.decoding` under limits on its cost.

Two more kinds of file are refused here, because they cost far more than their bytes and pixels suggest: JPEGs of more
than 100 scans, and PNGs with many colour profiles.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile

from maep.data.reading import decoding
from maep.data.reading.decoding import JPEG_START, PNG_START, Undecodable
from maep_serve.problems import Problem

SMALL = 256 * 256
"""Pixels up to which encoding, and decoding a PNG, is about as fast as handing the work to a thread."""
_SMALL_BYTES = 8 * 2**10  # a header takes time too: every chunk is read, and some are inflated to 1 MiB each
_SCAN = b"\xff\xda"
_MAX_SCANS = 100  # progressive JPEGs as encoders write them have about 10
_PROFILE = b"iCCP"
_MAX_PROFILES = 8  # a PNG has one; the rest of the allowance is for chance bytes

Kind = Literal["png", "jpeg"]


def decode(data: bytes, max_pixels: int) -> torch.Tensor:
    """The image in `data` as uint8 [1, 3, H, W].

    Raises Problem: not-an-image, too-many-pixels (from the header, before decoding) or unsupported-image.
    """
    with _problems():
        pixels_HWC = np.array(decoding.to_rgb(_open(data, max_pixels)), dtype=np.uint8)
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).unsqueeze(0).contiguous()


def is_small(data: bytes) -> bool:
    """Whether `data` claims to be a PNG small enough for the event loop. A JPEG's scans can make any size slow."""
    if not data.startswith(PNG_START) or not 24 <= len(data) <= _SMALL_BYTES:
        return False
    width, height = struct.unpack_from(">II", data, 16)
    return bool(width * height <= SMALL)


def num_pixels(data: bytes, max_pixels: int) -> int:
    """Pixels of the image in `data`, from its header. Raises Problem as `decode` does."""
    with _problems():
        image = _open(data, max_pixels)
    return image.width * image.height


def encode(pixels: torch.Tensor, kind: Kind = "png") -> bytes:
    """A uint8 [1, 3, H, W] tensor as PNG (exact) or as JPEG of quality 95 without chroma subsampling (lossy)."""
    assert pixels.dtype == torch.uint8
    image = Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    if kind == "png":
        image.save(buffer, "PNG", compress_level=3)
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float32 [0, 1]; float32 is returned as it is."""
    return pixels if pixels.is_floating_point() else pixels.to(torch.float32) / 255


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float [0, 1] to uint8, rounded to the nearest of the 256 levels (halves to even)."""
    return images.clamp(0, 1).mul_(255).round_().to(torch.uint8)  # in place: each copy of a large image is 200 MB


def _open(data: bytes, max_pixels: int) -> ImageFile:
    """The image with its header read and checked; nothing is decoded yet."""
    # Pillow inflates each profile to 1 MiB, and a body holds thousands; it bounds the sum of text chunks itself.
    if data.startswith(PNG_START) and data.count(_PROFILE) > _MAX_PROFILES:
        raise Problem("not-an-image", "the PNG has many colour profiles: remove all but one")
    image = decoding.open_image(data, max_pixels)
    # The count may include a preview's scans or chance bytes in metadata, but misses none: in coded data, another byte
    # follows FF.
    if data.startswith(JPEG_START) and data.count(_SCAN) > _MAX_SCANS:
        raise Problem("unsupported-image", f"the JPEG has more than {_MAX_SCANS} scans: save it as a baseline JPEG")
    return image


@contextmanager
def _problems() -> Iterator[None]:
    try:
        yield
    except Undecodable as reason:
        raise Problem(reason.code, str(reason)) from None
