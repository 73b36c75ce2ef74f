"""Raw tensors on the wire: channels last, row major, little endian, no padding; shape and dtype come separately.

uint8 in 0..255 or float32 in [0, 1], [H, W, 3] or [B, H, W, 3], RGB. Validated before memory is used.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import numpy as np
import torch

from maep_serve.problems import Problem

DType = Literal["uint8", "float32"]
_NUMPY: dict[DType, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}
_INTEGER = re.compile(r"-?[0-9]{1,9}")


def parse_shape(text: str) -> tuple[int, ...]:
    """The header x-shape, such as `32,32,3`. Raises Problem invalid-tensor."""
    words = [word.strip() for word in text.strip().strip("()[]").split(",")]
    if not all(_INTEGER.fullmatch(word) for word in words):
        raise Problem("invalid-tensor", f"x-shape: {text[:80]!r} is invalid, send H,W,3")
    return tuple(map(int, words))


def parse_dtype(text: str) -> DType:
    """The header x-dtype. Raises Problem invalid-tensor."""
    for dtype in _NUMPY:
        if text.strip().lower() == dtype:
            return dtype
    raise Problem("invalid-tensor", f"x-dtype: {text[:80]!r} is invalid, send uint8 or float32")


def num_pixels(shape: tuple[int, ...], max_pixels: int) -> int:
    """The pixels of all images in a tensor of `shape`. Raises Problem invalid-tensor or too-many-pixels."""
    if len(shape) not in (3, 4) or shape[-1] != 3 or min(shape) < 1:
        raise Problem("invalid-tensor", f"shape: {list(shape)[:6]} is invalid, send [H, W, 3] with sides of at least 1")
    count = math.prod(shape[:-1])
    if count > max_pixels:
        raise Problem("too-many-pixels", f"{count} pixels, at most {max_pixels} per request")
    return count


def to_images(data: bytes | memoryview, shape: tuple[int, ...], dtype: DType) -> torch.Tensor:
    """The images in `data`: uint8 or float32 [B, 3, H, W]. `shape` was validated by `num_pixels`.

    Raises Problem invalid-tensor where bytes and shape disagree, or a float is NaN, infinite or outside [0, 1].
    """
    expected = math.prod(shape) * _NUMPY[dtype].itemsize
    if len(data) != expected:
        raise Problem("invalid-tensor", f"got {len(data)} bytes, but {dtype} {list(shape)} needs {expected}")
    array_BHWC = np.frombuffer(data, _NUMPY[dtype]).reshape((-1, *shape[-3:]))
    images = torch.from_numpy(np.array(array_BHWC.transpose(0, 3, 1, 2), dtype, order="C"))  # its own memory
    if dtype == "float32":
        low, high = map(float, torch.aminmax(images))
        if not (low >= 0 and high <= 1):  # also false for NaN, which aminmax propagates
            detail = f"values are in {low:.4g} to {high:.4g}, but float32 must be finite and in [0, 1]"
            raise Problem("invalid-tensor", detail)
    return images


def to_bytes(images: torch.Tensor) -> bytes:
    """The wire form of uint8 or float32 [B, 3, H, W]: [B, H, W, 3], row major, little endian."""
    array = images.permute(0, 2, 3, 1).contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
