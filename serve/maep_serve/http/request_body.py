"""The image in a request's body: every cap is held while the body streams, and before more memory is spent on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from fastapi import Request

from maep_serve.engine.engine import Engine
from maep_serve.engine.service import Service
from maep_serve.http import images, tensors
from maep_serve.http.problems import Problem

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
TENSOR_TYPE = "application/octet-stream"
CLOSE = {"Connection": "close"}

# What `image` may answer instead, for the OpenAPI document.
CODES = (
    "not-an-image",
    "unauthorized",
    "body-timeout",
    "length-required",
    "body-too-large",
    "unsupported-media-type",
    "too-many-pixels",
    "unsupported-image",
    "invalid-tensor",
    "queue-full",
    "not-ready",
    "timeout",
)
_TENSOR_HEADERS = [
    {"name": "x-shape", "in": "header", "schema": {"type": "string"}, "description": f"H,W,3 of an {TENSOR_TYPE} body"},
    {
        "name": "x-dtype",
        "in": "header",
        "schema": {"type": "string", "enum": ["uint8", "float32"]},
        "description": f"type of an {TENSOR_TYPE} body: row major, little endian, float32 in [0, 1]",
    },
]
OPENAPI = {
    "parameters": _TENSOR_HEADERS,
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (*IMAGE_TYPES, TENSOR_TYPE)},
    },
}


def media_type(request: Request) -> str:
    """The body's type, in lower case, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def image(
    request: Request,
    service: Service,
    engine: Engine,
    max_pixels: int | None = None,
    answered: tensors.DType | None = None,
) -> AsyncIterator[torch.Tensor]:
    """The request's image while `engine` works on it: uint8, or float32 where a tensor is, [1, 3, H, W].

    answered: the type of the answer, where the caller asks for one; it is computed in that.
    Raises Problem: one of `CODES`.
    """
    limit = service.config.max_pixels if max_pixels is None else min(max_pixels, service.config.max_pixels)
    kind = media_type(request)
    if kind not in (*IMAGE_TYPES, TENSOR_TYPE):
        raise Problem("unsupported-media-type", f"content-type is {kind[:80]!r}", CLOSE)
    with service.admission():
        if kind == TENSOR_TYPE:
            async with _tensor(request, service, engine, limit, answered) as pixels:
                yield pixels
            return
        data = await read(request, service)
        async with service.time_limit():
            if images.is_small(data):
                yield await engine.run_codec("decode", True, images.decode, data, min(limit, images.SMALL))
                return
            count = await engine.run_codec(None, False, images.num_pixels, data, limit)
            with service.reservation(weight(count, answered)):
                # From the bytes again: an opened image, whose metadata may outweigh its pixels, must not queue up.
                pixels = await engine.run_codec("decode", False, images.decode, data, limit)
                del data  # it is not needed while the pixels wait
                yield pixels


@asynccontextmanager
async def _tensor(
    request: Request, service: Service, engine: Engine, limit: int, answered: tensors.DType | None
) -> AsyncIterator[torch.Tensor]:
    shape = tensors.parse_shape(request.headers.get("x-shape", ""))
    dtype = tensors.parse_dtype(request.headers.get("x-dtype", ""))
    count = tensors.num_pixels(shape, limit)
    if len(shape) == 4 and shape[0] > 1:
        raise Problem("invalid-tensor", f"{shape[0]} images: send one, or several to /v2/models/purifier/infer", CLOSE)
    data = await read(request, service)
    async with service.time_limit():
        with service.reservation(weight(count, dtype, answered)):
            pixels = await engine.run_codec("decode", count <= images.SMALL, tensors.to_images, data, shape, dtype)
            del data
            yield pixels


def weight(num_pixels: int, *dtypes: tensors.DType | None) -> int:
    """What an image of these types counts for in `Service.reservation`: memory in units of a uint8 image's pixels."""
    return 4 * num_pixels if "float32" in dtypes else num_pixels


async def read(request: Request, service: Service) -> bytes:
    """The body. Raises Problem: length-required, body-too-large (before the rest arrives) or body-timeout."""
    max_bytes, timeout_s = service.config.max_body_bytes, service.config.request_timeout_s
    length = request.headers.get("content-length")
    if length is None and "transfer-encoding" not in request.headers:
        raise Problem("length-required", "send the image as the body", CLOSE)
    too_large = Problem("body-too-large", f"at most {max_bytes} bytes are taken", CLOSE)
    if length is not None and length.isdecimal() and int(length) > max_bytes:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                data += chunk
                if len(data) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise Problem("body-timeout", f"not complete after {timeout_s:g} s", CLOSE) from None
    return bytes(data)
