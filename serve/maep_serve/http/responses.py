"""Encode responses: a purified image (PNG unless `Accept` names JPEG or a tensor) and a classifier's top classes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from starlette.responses import Response

from maep_serve import images
from maep_serve.engine.engine import Engine
from maep_serve.engine.loading import Models
from maep_serve.http import tensors
from maep_serve.http.request_body import TENSOR_TYPE

_KINDS: dict[str, Literal["png", "jpeg", "raw"]] = {"image/png": "png", "image/jpeg": "jpeg", TENSOR_TYPE: "raw"}

_BINARY = {"schema": {"type": "string", "format": "binary"}}
OPENAPI: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The purified image: PNG by default, exact; JPEG (quality 95) or a raw tensor [H, W, 3], with "
        f"its x-shape and x-dtype, if Accept names them. `Accept: {TENSOR_TYPE};dtype=float32` is not rounded.",
        "content": dict.fromkeys(_KINDS, _BINARY),
    }
}


@dataclass(frozen=True)
class Form:
    """How a response is encoded. dtype: of a raw tensor; None: the dtype of the request's image."""

    kind: Literal["png", "jpeg", "raw"] = "png"
    dtype: tensors.DType | None = None


def wanted(accept: str) -> Form:
    """The form that the header `Accept` requests: the supported type with the highest q, PNG if it names none.

    Raises Problem invalid-tensor for an unknown `dtype`.
    """
    best, form = 0.0, Form()
    for entry in accept.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        quality = 0.0
        with contextlib.suppress(ValueError):
            quality = float(values.get("q", "1"))
        kind = _KINDS.get(name.lower())
        if kind is not None and quality > best:
            dtype = values.get("dtype")
            best, form = quality, Form(kind, tensors.parse_dtype(dtype) if kind == "raw" and dtype else None)
    return form


async def prepared(pixels: torch.Tensor, form: Form, engine: Engine) -> torch.Tensor:
    """`pixels` in the dtype of the computation: float32 if the response must not be rounded."""
    if form.dtype != "float32" or pixels.is_floating_point():
        return pixels
    return await engine.run_codec(None, pixels.numel() <= 3 * images.SMALL, images.to_float, pixels)


async def respond(purified: torch.Tensor, form: Form, engine: Engine) -> Response:
    """The response with one purified image, uint8 or float32 [1, 3, H, W]."""
    small = purified.numel() <= 3 * images.SMALL
    body, media_type, headers = await engine.run_codec("encode", small, _encoded, purified, form)
    return Response(body, media_type=media_type, headers={**version_headers(engine.models), **headers})


def _encoded(purified: torch.Tensor, form: Form) -> tuple[bytes, str, dict[str, str]]:
    """The body, its media type, and the headers that describe it."""
    rounded = purified.is_floating_point() and not (form.kind == "raw" and form.dtype != "uint8")
    pixels = images.to_uint8(purified) if rounded else purified
    if form.kind != "raw":
        return images.encode(pixels, form.kind), f"image/{form.kind}", {}
    shape = ",".join(map(str, (*pixels.shape[-2:], 3)))
    dtype = "float32" if pixels.is_floating_point() else "uint8"
    return tensors.to_bytes(pixels), TENSOR_TYPE, {"x-shape": shape, "x-dtype": dtype}


def version_headers(models: Models) -> dict[str, str]:
    """The response headers that identify the purifier."""
    return {"x-maep-purifier": models.purifier_sha256}


def top(probabilities: torch.Tensor, classes: tuple[str, ...], top_k: int) -> list[dict[str, Any]]:
    """The `top_k` most probable classes of float32 [classes], with their names."""
    best = probabilities.topk(min(top_k, len(probabilities)))
    return [
        {"index": index, "class": classes[index] if index < len(classes) else str(index), "probability": round(p, 6)}
        for p, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
