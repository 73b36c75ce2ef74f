"""Read the image in a request's body. Every limit applies while the body streams in, before more memory is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from fastapi import Request

from maep_serve import images
from maep_serve.engine.engine import Engine
from maep_serve.engine.service import Service
from maep_serve.http import tensors
from maep_serve.problems import Problem

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
TENSOR_TYPE = "application/octet-stream"
CLOSE = {"Connection": "close"}

# The problems that `image` raises, for the OpenAPI document.
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
        "description": f"dtype of an {TENSOR_TYPE} body: row major, little endian, float32 in [0, 1]",
    },
]
OPENAPI = {
    "parameters": _TENSOR_HEADERS,
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (*IMAGE_TYPES, TENSOR_TYPE)},
    },
}


@asynccontextmanager
async def image(
    request: Request,
    service: Service,
    engine: Engine,
    max_pixels: int | None = None,
    output: tensors.DType | None = None,
) -> AsyncIterator[torch.Tensor]:
    """Decode the request's image [1, 3, H, W]: uint8, or float32 for a float32 tensor. `engine` works on it inside.

    output: the dtype of the response if the caller requests one. The computation uses it too, so it counts as memory.
    Raises Problem: one of `CODES`.
    """
    limit = service.config.max_pixels if max_pixels is None else min(max_pixels, service.config.max_pixels)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (*IMAGE_TYPES, TENSOR_TYPE):
        raise Problem("unsupported-media-type", f"content-type: {kind[:80]!r} is not supported", CLOSE)
    with service.admission():
        if kind == TENSOR_TYPE:
            async with _tensor(request, service, engine, limit, output) as pixels:
                yield pixels
            return
        data = await read(request, service)
        async with service.time_limit():
            if images.is_small(data):
                yield await engine.run_codec("decode", True, images.decode, data, min(limit, images.SMALL))
                return
            count = await engine.run_codec(None, False, images.num_pixels, data, limit)
            with service.reservation(weight(count, output)):
                # Opened again from the bytes: opened images, whose metadata can exceed their pixels, must not queue up.
                pixels = await engine.run_codec("decode", False, images.decode, data, limit)
                del data  # frees the body while the pixels wait
                yield pixels


@asynccontextmanager
async def _tensor(
    request: Request, service: Service, engine: Engine, limit: int, output: tensors.DType | None
) -> AsyncIterator[torch.Tensor]:
    shape = tensors.parse_shape(request.headers.get("x-shape", ""))
    dtype = tensors.parse_dtype(request.headers.get("x-dtype", ""))
    count = tensors.num_pixels(shape, limit)
    if len(shape) == 4 and shape[0] > 1:
        detail = f"x-shape: {shape[0]} images, but one per request: send several to /v2/models/purifier/infer"
        raise Problem("invalid-tensor", detail, CLOSE)
    data = await read(request, service)
    async with service.time_limit():
        with service.reservation(weight(count, dtype, output)):
            pixels = await engine.run_codec("decode", count <= images.SMALL, tensors.to_images, data, shape, dtype)
            del data
            yield pixels


def weight(num_pixels: int, *dtypes: tensors.DType | None) -> int:
    """The weight of an image of these dtypes in `Service.reservation`, in pixels of a uint8 image."""
    return 4 * num_pixels if "float32" in dtypes else num_pixels


async def read(request: Request, service: Service) -> bytes:
    """The body. Raises Problem: length-required, body-too-large (before the rest arrives) or body-timeout."""
    max_bytes, timeout_s = service.config.max_body_bytes, service.config.request_timeout_s
    length = request.headers.get("content-length")
    if length is None and "transfer-encoding" not in request.headers:
        raise Problem("length-required", "send the image as the body", CLOSE)
    too_large = Problem("body-too-large", f"at most {max_bytes} bytes per body", CLOSE)
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
        raise Problem("body-timeout", f"the body was incomplete after {timeout_s:g} s", CLOSE) from None
    return bytes(data)
