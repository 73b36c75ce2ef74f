"""The Open Inference Protocol v2 (kserve.github.io, "Open Inference Protocol") with its binary tensor extension.

One model, `purifier`: input `images` to output `purified`, both [B, H, W, 3] or [H, W, 3], UINT8 in 0..255 or FP32 in
[0, 1]; the output has the input's type and shape. An error is a problem document that also has the member `error`,
which the protocol's clients show.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request
from starlette.responses import Response

from maep import __version__
from maep_serve.engine.service import Service
from maep_serve.http import images, request_body, tensors
from maep_serve.http.problems import Problem, openapi_responses

MODEL = "purifier"
LENGTH_HEADER = "inference-header-content-length"
_INPUT, _OUTPUT = "images", "purified"
_DTYPES: dict[str, tensors.DType] = {"UINT8": "uint8", "FP32": "float32"}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_JSON_BYTES = 2**20  # a list of numbers takes some thirty times its text; more of them come as binary data
_SMALL_JSON_BYTES = 2**13
_MAX_IMAGES = 256  # of one pixel each, a body's worth would be millions of tensors
_VERSIONED = ("", "/versions/{version}")


@dataclass(frozen=True)
class Header:
    """A request but for its tensor. binary: the answer."""

    shape: tuple[int, ...]
    dtype: tensors.DType
    binary: bool
    id: str | None


def add_routes(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    """/v2 and what is below it."""

    @app.get("/v2/health/live", summary="Open Inference Protocol: the process is up")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Open Inference Protocol: ready", responses=openapi_responses("not-ready"))
    async def ready() -> dict[str, bool]:
        return {"ready": bool(service.models)}

    @app.get("/v2", summary="Open Inference Protocol: this server", dependencies=authorised)
    async def server() -> dict[str, Any]:
        return {"name": "maep", "version": __version__, "extensions": ["binary_tensor_data"]}

    for versioned in _VERSIONED:
        _add_model_routes(app, service, authorised, f"/v2/models/{{model}}{versioned}")


def _add_model_routes(app: FastAPI, service: Service, authorised: list[Any], path: str) -> None:
    @app.get(f"{path}/ready", responses=openapi_responses("not-ready", "not-found"))
    async def ready(model: str, version: str | None = None) -> dict[str, Any]:
        _require(service, model, version)
        return {"name": MODEL, "ready": True}

    @app.get(path, dependencies=authorised, responses=openapi_responses("not-ready", "not-found", "unauthorized"))
    async def metadata(model: str, version: str | None = None) -> dict[str, Any]:
        _require(service, model, version)
        tensor = {"datatype": "UINT8", "shape": [-1, -1, -1, 3]}
        return {
            "name": MODEL,
            "versions": [service.version],
            "platform": "pytorch",
            "inputs": [{"name": _INPUT, **tensor}],
            "outputs": [{"name": _OUTPUT, **tensor}],
        }

    @app.post(
        f"{path}/infer",
        dependencies=authorised,
        response_class=Response,
        responses=openapi_responses(*request_body.CODES, "invalid-request", "not-found"),
    )
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        _require(service, model, version)
        engine, encoding = service.engine, request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Problem(
                "unsupported-media-type", f"content-encoding is {encoding[:40]!r}: send it plain", request_body.CLOSE
            )
        with service.admission():
            data = await request_body.read(request, service)
            async with service.time_limit():
                header, raw = await engine.run_codec(
                    None, len(data) <= _SMALL_JSON_BYTES, parse, data, request.headers.get(LENGTH_HEADER)
                )
                count = tensors.num_pixels(header.shape, service.config.max_pixels)
                with service.reservation(request_body.weight(count, header.dtype)):
                    small = count <= images.SMALL
                    pixels = await engine.run_codec("decode", small, tensors.to_images, raw, header.shape, header.dtype)
                    del data, raw
                    purified = await engine.purify(pixels)
                    version = engine.models.purifier_sha256[:12]
                    small = small and header.binary
                    return await engine.run_codec(
                        "encode", small, _answer, purified, header, version, engine.models.purifier_sha256
                    )


def parse(data: bytes, header_length: str | None) -> tuple[Header, bytes | memoryview]:
    """The JSON part of a body, judged, and the tensor's bytes, be it that they follow, be it that they are its numbers.

    Numbers become bytes at once: as Python's they take some twenty times the memory, and many requests may wait.
    Raises Problem: invalid-request or invalid-tensor.
    """
    length = len(data) if header_length is None else _length(header_length, len(data))
    if length > _MAX_JSON_BYTES:
        raise Problem("body-too-large", f"at most {_MAX_JSON_BYTES} bytes of JSON: send the tensor as binary data")
    try:
        body = json.loads(data[:length])
    except (ValueError, RecursionError) as error:
        raise Problem("invalid-request", f"not JSON: {str(error)[:80]}") from None
    inputs = body.get("inputs") if isinstance(body, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem("invalid-request", f"inputs: one is needed, named {_INPUT}")
    rest = memoryview(data)[length:]
    header, numbers = _header(body, inputs[0], len(rest))
    return header, rest if numbers is None else _raw(numbers, header.dtype)


def _raw(numbers: list[Any], dtype: tensors.DType) -> bytes:
    # As objects: of one text among the numbers, numpy would make texts of all, each as long as the longest
    try:
        array = np.array(numbers, dtype=object).ravel()
    except ValueError:
        raise Problem("invalid-tensor", "data: the lists differ in length") from None
    types = set(map(type, array))
    if not types <= ({int, float} if dtype == "float32" else {int}):
        raise Problem("invalid-tensor", f"data: {dtype} numbers are needed, in lists of equal length")
    if dtype == "uint8" and array.size and not (array.min() >= 0 and array.max() <= 255):
        raise Problem("invalid-tensor", "data: values of uint8 are 0 to 255")
    try:
        with np.errstate(over="ignore"):  # to infinity, which is refused like every other value above 1
            return array.astype("u1" if dtype == "uint8" else "<f4").tobytes()
    except OverflowError:
        raise Problem("invalid-tensor", "data: values of float32 are 0 to 1") from None


def _header(body: dict[str, Any], given: dict[str, Any], num_binary: int) -> tuple[Header, list[Any] | None]:
    name, shape, datatype = given.get("name"), given.get("shape"), given.get("datatype")
    if name != _INPUT:
        raise Problem("invalid-request", f"inputs: {str(name)[:40]!r} is not known: the input is {_INPUT}")
    if not isinstance(shape, list) or not all(type(side) is int and abs(side) < 2**31 for side in shape):
        raise Problem("invalid-tensor", "shape: a list of integers is needed")
    if not isinstance(datatype, str) or datatype not in _DTYPES:
        raise Problem("invalid-tensor", f"datatype is {str(datatype)[:40]!r}: send UINT8 or FP32")
    if len(shape) == 4 and shape[0] > _MAX_IMAGES:
        raise Problem("invalid-tensor", f"{shape[0]} images: at most {_MAX_IMAGES} are taken at once")
    size = _parameters(given).get("binary_data_size")
    data = given.get("data")
    if size is None and not isinstance(data, list):
        raise Problem("invalid-request", "inputs: neither data nor binary_data_size is given")
    if (size or 0) != num_binary or (size is not None and data is not None):
        raise Problem(
            "invalid-request", f"binary_data_size is {str(size)[:20]}, and {num_binary} bytes follow the JSON"
        )
    request_id = body.get("id")
    request_id = request_id if isinstance(request_id, str) else None
    header = Header(tuple(shape), _DTYPES[datatype], _wants_binary(body), request_id)
    return header, None if size is not None else data


def _wants_binary(body: dict[str, Any]) -> bool:
    """What the only output asks for, else what the request asks for all outputs."""
    default = _parameters(body).get("binary_data_output") is True
    outputs = body.get("outputs")
    if outputs is None:
        return default
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise Problem("invalid-request", f"outputs: one at most, named {_OUTPUT}")
    if outputs[0].get("name") != _OUTPUT:
        raise Problem("invalid-request", f"outputs: {str(outputs[0].get('name'))[:40]!r} is not known: it is {_OUTPUT}")
    return bool(_parameters(outputs[0]).get("binary_data", default))


def _parameters(of: dict[str, Any]) -> dict[str, Any]:
    found = of.get("parameters", {})
    if not isinstance(found, dict):
        raise Problem("invalid-request", "parameters: an object is needed")
    return found


def _answer(purified: torch.Tensor, header: Header, version: str, sha256: str) -> Response:
    output: dict[str, Any] = {"name": _OUTPUT, "datatype": _DATATYPES[header.dtype], "shape": list(header.shape)}
    body: dict[str, Any] = {"model_name": MODEL, "model_version": version, "outputs": [output]}
    if header.id is not None:
        body["id"] = header.id
    headers = {"x-maep-purifier": sha256}
    if not header.binary:
        output["data"] = purified.permute(0, 2, 3, 1).flatten().tolist()
        return Response(json.dumps(body), media_type="application/json", headers=headers)
    raw = tensors.to_bytes(purified)
    output["parameters"] = {"binary_data_size": len(raw)}
    text = json.dumps(body).encode()
    return Response(text + raw, media_type=request_body.TENSOR_TYPE, headers={**headers, LENGTH_HEADER: str(len(text))})


def _length(text: str, available: int) -> int:
    if not text.isdecimal() or not 0 < int(text[:12]) <= available:
        raise Problem("invalid-request", f"{LENGTH_HEADER} is {text[:20]!r}, and the body has {available} bytes")
    return int(text[:12])


def _require(service: Service, model: str, version: str | None) -> None:
    """Raises Problem not-ready, or not-found for another model or a version that is not the one served."""
    served = service.models.purifier_sha256[:12]
    if model != MODEL or version not in (None, served):
        asked = model[:40] if version is None else f"{model[:40]} version {version[:40]}"
        raise Problem("not-found", f"model {asked!r}: {MODEL} version {served} is served")
