"""The purifier behind LitServe, as its documentation shows it, with raw bodies by FastAPI's own `Body`.

A module of its own, for LitServe's workers are new processes that import the class by name.
"""

import argparse
from typing import Annotated

import litserve as ls
import torch
from fastapi import Body
from serve_rivals import RAW, decode, encode, forward, load
from starlette.responses import Response


class Purify(ls.LitAPI):
    """Decode, batch, predict, unbatch, encode; the worker does them all, the HTTP process only passes bytes on."""

    def __init__(self, model: str, kind: str, max_batch_size: int, wait_s: float) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=wait_s, api_path="/v1/purify")
        self.source = model
        self.kind = kind

    def setup(self, device: str) -> None:
        self.purifier = load(self.source)

    def decode_request(self, request: Annotated[bytes, Body(media_type=RAW)]) -> torch.Tensor:
        return decode(request, self.purifier.image_size[0], self.kind)

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(inputs)

    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        return forward(self.purifier, batch)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output.split(1))

    def encode_response(self, output: torch.Tensor) -> Response:
        return Response(encode(output, self.kind), media_type=RAW if self.kind == "raw" else "image/png")


def serve(options: argparse.Namespace) -> None:
    """Blocks until it is told to end."""
    api = Purify(options.model, options.kind, options.max_batch_size, options.wait_ms / 1000)
    server = ls.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=options.workers,
        fast_queue=True,  # as its documentation advises for such rates
        timeout=60,
        healthcheck_path="/readyz",
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
        num_api_servers=1,
    )
