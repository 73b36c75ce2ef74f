"""The Open Inference Protocol v2 (kserve.github.io, "Open Inference Protocol") with its binary tensor extension.

One model, `purifier`: input `images`, output `purified`, both [B, H, W, 3] or [H, W, 3], UINT8 in 0..255 or FP32 in
[0, 1]; the output has the input's type and shape. Errors are problem documents with the additional member `error`,
which the protocol's clients show.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import numpy as np
import torch
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field, StrictInt, ValidationError
from starlette.responses import Response

from maep import __version__
from maep_serve import images
from maep_serve.engine.loading import Models
from maep_serve.engine.service import Service
from maep_serve.http import request_body, responses, tensors
from maep_serve.problems import Problem, openapi_responses

MODEL = "purifier"
LENGTH_HEADER = "inference-header-content-length"
_INPUT, _OUTPUT = "images", "purified"
_DTYPES: dict[str, tensors.DType] = {"UINT8": "uint8", "FP32": "float32"}
_MAX_JSON_BYTES = 2**20  # numbers take thirty times the memory of their text; larger tensors must be binary
_SMALL_JSON_BYTES = 2**13
_MAX_IMAGES = 256  # otherwise a body of one-pixel images would be millions of tensors
_VERSIONED = ("", "/versions/{version}")


class _Parameters(BaseModel):
    """The parameters of a request, an input or an output, each of which uses one."""

    binary_data_output: bool = False
    binary_data_size: StrictInt | None = None
    binary_data: bool | None = None


class _Input(BaseModel):
    name: Literal["images"]
    shape: Annotated[list[Annotated[StrictInt, Field(gt=-(2**31), lt=2**31)]], Field(max_length=4)]
    datatype: Literal["UINT8", "FP32"]
    parameters: _Parameters = _Parameters()
    data: list[Any] | None = None


class _Output(BaseModel):
    name: Literal["purified"]
    parameters: _Parameters = _Parameters()


class InferRequest(BaseModel):
    """The JSON part of a request. The parts of the protocol that maep does not use are ignored."""

    id: Any = None
    inputs: Annotated[list[_Input], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[_Output], Field(min_length=1, max_length=1)] | None = None
    parameters: _Parameters = _Parameters()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the input and the output."""
        return tuple(self.inputs[0].shape)

    @property
    def dtype(self) -> tensors.DType:
        """The dtype of the input and the output."""
        return _DTYPES[self.inputs[0].datatype]

    @property
    def binary(self) -> bool:
        """Whether the output is binary: as requested for this output, else as requested for all outputs."""
        requested = None if self.outputs is None else self.outputs[0].parameters.binary_data
        return self.parameters.binary_data_output if requested is None else requested


def add_routes(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    """/v2 and everything below it."""

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
            detail = f"content-encoding: {encoding[:40]!r} is not supported, send the body uncompressed"
            raise Problem("unsupported-media-type", detail, request_body.CLOSE)
        with service.admission():
            body = await request_body.read(request, service)
            async with service.time_limit():
                small = len(body) <= _SMALL_JSON_BYTES
                asked, raw = await engine.run_codec(None, small, parse, body, request.headers.get(LENGTH_HEADER))
                count = tensors.num_pixels(asked.shape, service.config.max_pixels)
                with service.reservation(request_body.weight(count, asked.dtype)):
                    small = count <= images.SMALL
                    pixels = await engine.run_codec("decode", small, tensors.to_images, raw, asked.shape, asked.dtype)
                    del body, raw
                    purified = await engine.purify(pixels)
                    small = small and asked.binary
                    return await engine.run_codec("encode", small, _response, purified, asked, engine.models)


def parse(body: bytes, header_length: str | None) -> tuple[InferRequest, bytes | memoryview]:
    """The JSON part of a body, and the tensor's bytes, which follow it or are converted from its numbers.

    Numbers become bytes at once: as Python objects they take twenty times the memory, and many requests may wait.
    Raises Problem: invalid-request or invalid-tensor.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    if length > _MAX_JSON_BYTES:
        raise Problem("body-too-large", f"at most {_MAX_JSON_BYTES} bytes of JSON: send the tensor as binary data")
    try:
        asked = InferRequest.model_validate(json.loads(body[:length]))
    except ValidationError as error:
        raise _problem(error) from None
    except (ValueError, RecursionError) as error:
        raise Problem("invalid-request", f"not JSON: {str(error)[:80]}") from None
    tensor, rest = asked.inputs[0], memoryview(body)[length:]
    size, numbers = tensor.parameters.binary_data_size, tensor.data
    tensor.data = None
    if len(tensor.shape) == 4 and tensor.shape[0] > _MAX_IMAGES:
        raise Problem("invalid-tensor", f"inputs.0.shape: {tensor.shape[0]} images, at most {_MAX_IMAGES} per request")
    if (size is None) == (numbers is None):
        raise Problem("invalid-request", "inputs.0: give either data or binary_data_size")
    if (size or 0) != len(rest):
        raise Problem("invalid-request", f"binary_data_size: {size}, but {len(rest)} bytes follow the JSON")
    return asked, rest if numbers is None else _raw(numbers, asked.dtype)


def _problem(error: ValidationError) -> Problem:
    """The first error, as invalid-tensor if it is in shape or datatype, else as invalid-request."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    code = "invalid-tensor" if {"shape", "datatype"} & set(first["loc"]) else "invalid-request"
    return Problem(code, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}")


def _raw(numbers: list[Any], dtype: tensors.DType) -> bytes:
    # As objects, because numpy would convert a list that contains one string to strings, each as long as the longest
    try:
        array = np.array(numbers, dtype=object).ravel()
    except ValueError:
        raise Problem("invalid-tensor", "data: the lists differ in length") from None
    if not set(map(type, array)) <= ({int, float} if dtype == "float32" else {int}):
        raise Problem("invalid-tensor", f"data: must hold {dtype} numbers, in lists of equal length")
    if dtype == "uint8" and array.size and not (array.min() >= 0 and array.max() <= 255):
        raise Problem("invalid-tensor", "data: uint8 values must be in 0 to 255")
    try:
        with np.errstate(over="ignore"):  # to infinity, which is refused like every other value above 1
            return array.astype("u1" if dtype == "uint8" else "<f4").tobytes()
    except OverflowError:
        raise Problem("invalid-tensor", "data: float32 values must be in 0 to 1") from None


def _response(purified: torch.Tensor, asked: InferRequest, models: Models) -> Response:
    output: dict[str, Any] = {"name": _OUTPUT, "datatype": asked.inputs[0].datatype, "shape": list(asked.shape)}
    body: dict[str, Any] = {"model_name": MODEL, "model_version": models.version, "outputs": [output]}
    if isinstance(asked.id, str):
        body["id"] = asked.id
    headers = responses.version_headers(models)
    if not asked.binary:
        output["data"] = purified.permute(0, 2, 3, 1).flatten().tolist()
        return Response(json.dumps(body), media_type="application/json", headers=headers)
    raw = tensors.to_bytes(purified)
    output["parameters"] = {"binary_data_size": len(raw)}
    text = json.dumps(body).encode()
    return Response(text + raw, media_type=request_body.TENSOR_TYPE, headers={**headers, LENGTH_HEADER: str(len(text))})


def _length(text: str, available: int) -> int:
    if not text.isdecimal() or not 0 < int(text[:12]) <= available:
        raise Problem("invalid-request", f"{LENGTH_HEADER}: {text[:20]!r}, but the body has {available} bytes")
    return int(text[:12])


def _require(service: Service, model: str, version: str | None) -> None:
    """Raises Problem not-ready, or not-found for another model or a version that is not served."""
    served = service.models.version
    if model != MODEL or version not in (None, served):
        asked = model[:40] if version is None else f"{model[:40]} version {version[:40]}"
        raise Problem("not-found", f"model {asked!r} is not served: use {MODEL} version {served}")
