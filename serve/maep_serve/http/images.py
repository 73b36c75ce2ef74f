"""PNG, JPEG and WebP bytes to image tensors and back: capped before decoding, and converted as written here.

Taken: pixels that are grey, grey + alpha, palette, RGB or RGBA with at most 8 bits a channel.
Converted: grey and palette become RGB; transparency is composited on white; an EXIF orientation is applied.
Refused: CMYK, 16-bit and animated images, whose meaning a purifier of 8-bit RGB would silently change; and JPEGs of
more than 100 scans and PNGs of many colour profiles, which cost far more than their bytes and pixels say.
"""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from maep_serve.http import webp
from maep_serve.http.problems import Problem

SMALL = 256 * 256  # pixels that are encoded, and as a PNG decoded, about as fast as a thread is woken for them

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_SMALL_BYTES = 8 * 2**10  # also a header takes time: every chunk is read, and some are inflated to 1 MiB each
_SCAN = b"\xff\xda"
_MAX_SCANS = 100  # progressive JPEGs as encoders write them have about 10
_PROFILE = b"iCCP"
_MAX_PROFILES = 8  # a PNG has one; the rest of the allowance is for chance bytes


Kind = Literal["png", "jpeg"]


def decode(data: bytes, max_pixels: int) -> torch.Tensor:
    """The image in `data` as uint8 [1, 3, H, W].

    Raises Problem: not-an-image, too-many-pixels (from the header, before decoding) or unsupported-image.
    """
    return to_pixels(open_image(data, max_pixels))


def is_small(data: bytes) -> bool:
    """Whether `data` claims to be a PNG that may be decoded on the event loop; a JPEG's scans make any size slow."""
    if not data.startswith(_PNG) or not 24 <= len(data) <= _SMALL_BYTES:
        return False
    width, height = struct.unpack_from(">II", data, 16)
    return bool(width * height <= SMALL)


def num_pixels(data: bytes, max_pixels: int) -> int:
    """Pixels of the image in `data`, from its header. Raises Problem as `decode` does."""
    image = open_image(data, max_pixels)
    return image.width * image.height


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Reads and judges the header; nothing is decoded yet. Raises Problem as `decode` does."""
    if webp.is_webp(data):
        _judge_webp(data, max_pixels)
    # Pillow inflates each to 1 MiB, and a body holds thousands; of texts it bounds the sum itself
    if data.startswith(_PNG) and data.count(_PROFILE) > _MAX_PROFILES:
        raise Problem("not-an-image", "the PNG has many colour profiles, where there may be one")
    image = _open(data)
    _judge_size(*image.size, max_pixels)
    # May count what is no scan, such as a preview's or chance bytes in metadata, but misses none: in coded data another
    # byte follows FF.
    if data.startswith(_JPEG) and data.count(_SCAN) > _MAX_SCANS:
        raise Problem("unsupported-image", f"the JPEG has more than {_MAX_SCANS} scans: save it as a baseline JPEG")
    if getattr(image, "n_frames", 1) > 1:
        raise Problem("unsupported-image", "the image is animated: send one frame")
    if image.mode not in _MODES or _bit_depth(data) > 8:
        raise Problem("unsupported-image", f"mode {image.mode}: send grey, palette, RGB or RGBA with 8 bits a channel")
    return image


def to_pixels(image: Image.Image) -> torch.Tensor:
    """Decodes an opened image to uint8 [1, 3, H, W]. Raises Problem not-an-image where it is damaged."""
    try:
        ImageOps.exif_transpose(image, in_place=True)  # else an image that lies right is copied
        rgb = _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise many kinds on damaged data
        raise Problem("not-an-image", f"the image is damaged: {_line(error)}") from None
    pixels_HWC = np.array(rgb, dtype=np.uint8)
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).unsqueeze(0).contiguous()


def encode(pixels: torch.Tensor, kind: Kind) -> bytes:
    """A uint8 [1, 3, H, W] tensor as PNG, exactly, or as JPEG of quality 95 without chroma subsampling, about."""
    assert pixels.dtype == torch.uint8
    image = Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    if kind == "png":
        image.save(buffer, "PNG", compress_level=3)
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def encode_png(pixels: torch.Tensor) -> bytes:
    """PNG of a uint8 [1, 3, H, W] tensor."""
    return encode(pixels, "png")


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float32 [0, 1]; float32 as it is."""
    return pixels if pixels.is_floating_point() else pixels.to(torch.float32) / 255


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float [0, 1] to uint8, rounded to the nearest of the 256 levels (halves to even)."""
    return images.clamp(0, 1).mul_(255).round_().to(torch.uint8)  # in place: of a large image each copy is 200 MB


def _open(data: bytes) -> Image.Image:
    """Reads the header only; the decoder is chosen by the first bytes, so no other format is ever tried."""
    reader: type[PngImageFile] | type[JpegImageFile] | type[WebPImageFile]
    if data.startswith(_PNG):
        reader = PngImageFile
    elif data.startswith(_JPEG):
        reader = JpegImageFile
    elif webp.is_webp(data):
        reader = WebPImageFile
    else:
        raise Problem("not-an-image", "the body starts like none of PNG, JPEG and WebP")
    try:
        image = reader(io.BytesIO(data))
    except Exception as error:
        raise Problem("not-an-image", f"the header is damaged: {_line(error)}") from None
    if min(image.size) < 1:
        raise Problem("not-an-image", "the image has no pixels")
    return image


def _judge_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Problem("too-many-pixels", f"{width} x {height} pixels, at most {max_pixels} in all are taken")


def _judge_webp(data: bytes, max_pixels: int) -> None:
    """Before Pillow sees it: its reader makes room for two whole pictures when it opens one."""
    try:
        header = webp.header(data)
    except ValueError as error:
        raise Problem("not-an-image", f"the header is damaged: {error}") from None
    _judge_size(header.width, header.height, max_pixels)
    if header.animated:
        raise Problem("unsupported-image", "the image is animated: send one frame")


def _bit_depth(data: bytes) -> int:
    """Bits a channel, from a PNG's IHDR chunk; Pillow turns 16-bit RGB into 8 bits without a word."""
    return data[24] if data.startswith(_PNG) and len(data) > 24 else 8


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
