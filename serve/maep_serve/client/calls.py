"""The endpoint's calls without I/O: what to send, and how to read the response. `client` sends them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from maep.errors import ConfigError
from maep_serve.client.results import Classified, Info, Purified
from maep_serve.client.retry import RawResponse

Pixels = NDArray[np.uint8] | NDArray[np.float32]

_T = TypeVar("_T")
_RAW = "application/octet-stream"
_DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}
_CLASSIFIED, _INFO = TypeAdapter(Classified), TypeAdapter(Info)


@dataclass(frozen=True)
class Call(Generic[_T]):
    """One request, and the reader of its response, which raises KeyError or ValueError for any other document."""

    method: str
    url: str
    read: Callable[[RawResponse], _T]
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self, timeout_s: float) -> dict[str, Any]:
        """The arguments of httpx's `request` and `stream`."""
        request = {"method": self.method, "url": self.url, "content": self.content, "headers": self.headers}
        return {**request, "timeout": timeout_s}


def purify(image: bytes) -> Call[Purified]:
    """POST /v1/purify with an encoded image."""
    return Call("POST", "/v1/purify", _purified, image, {"Content-Type": content_type(image)})


def purify_array(image: Pixels) -> Call[Pixels]:
    """POST /v1/purify with raw pixels. Raises ConfigError for another shape or dtype than `Client.purify_array`'s."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype not in (np.uint8, np.float32):
        raise ConfigError(f"image: got {image.dtype} {list(image.shape)}, expected uint8 or float32 [H, W, 3]")
    headers = {
        "Content-Type": _RAW,
        "Accept": f"{_RAW};dtype={image.dtype.name}",
        "X-Shape": ",".join(map(str, image.shape)),
        "X-Dtype": image.dtype.name,
    }
    body = np.ascontiguousarray(image, image.dtype.newbyteorder("<")).tobytes()
    return Call("POST", "/v1/purify", _array, body, headers)


def classify(image: bytes, top_k: int) -> Call[Classified]:
    """POST /v1/classify with an encoded image."""
    headers = {"Content-Type": content_type(image)}
    path = f"/v1/classify?top_k={top_k}"
    return Call("POST", path, lambda response: _CLASSIFIED.validate_json(response.body), image, headers)


def info() -> Call[Info]:
    """GET /v1/info."""
    return Call("GET", "/v1/info", lambda response: _INFO.validate_json(response.body))


def content_type(image: bytes) -> str:
    """The media type of an encoded image, by its first bytes. Others are sent as PNG, which the endpoint refuses."""
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    return "image/png"


def _purified(response: RawResponse) -> Purified:
    headers = response.headers
    return Purified(response.body, headers["content-type"], headers["x-maep-purifier"], headers.get("x-request-id"))


def _array(response: RawResponse) -> Pixels:
    shape = tuple(map(int, response.headers["x-shape"].split(",")))
    dtype = _DTYPES[response.headers["x-dtype"]]
    # A copy, because an array over bytes is read-only.
    return np.frombuffer(response.body, dtype).reshape(shape).astype(dtype.newbyteorder("="))
