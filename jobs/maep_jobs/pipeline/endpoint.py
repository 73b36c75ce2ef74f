"""The last stage of the pipeline: start the endpoint and check one response against the champion's offline output."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import torch

from maep.artifact import Artifact
from maep.data.datasets import load
from maep.data.image_set import to_float, to_uint8
from maep.data.lists import named, pick
from maep.errors import JobFailed
from maep.evaluate.config import EvaluateConfig
from maep.models.build import load_purifier_artifact
from maep.tracking.client import TrackingConfig
from maep.tracking.resolve import resolve
from maep_serve import images
from maep_serve.client.client import Client, token_of_environment
from maep_serve.config import ServeConfig


def check_endpoint(
    serve: ServeConfig, tracking: TrackingConfig, evaluation: EvaluateConfig, keep: bool = False
) -> dict[str, Any]:
    """Start the endpoint, compare one response with the offline output byte for byte, and stop it (or `keep` it).

    Raises JobFailed if they differ: the served purifier would not be the evaluated one.
    """
    from maep_serve.ray.server import start

    champion = resolve(serve.model, tracking)
    with start(dataclasses.replace(serve, model=str(champion.folder))) as server:
        listed = named(evaluation.images)
        pixels = pick(load(evaluation.data, listed.split), listed).pixels([0])[0]
        png = images.encode(torch.from_numpy(pixels[None]).permute(0, 3, 1, 2))
        with Client(server.url, token_of_environment()) as client:
            served = images.decode(client.purify(png).image, pixels.size)[0].permute(1, 2, 0).numpy()
        identical = np.array_equal(served, offline(champion, pixels)) and server.purifier_sha256 == champion.sha256
        if not identical:
            raise JobFailed(
                f"serve: the endpoint's output differs from the offline output of {champion.sha256[:12]}:"
                " check that both use the same libraries"
            )
        if keep:
            print(f"the endpoint keeps running at {server.url}/ (Ctrl-C to stop)", file=sys.stderr, flush=True)
            server.wait()
        return {"url": server.url, "sha256": champion.sha256, "identical": identical}


def offline(champion: Artifact, pixels: np.ndarray) -> np.ndarray:
    """The purified image, uint8 [H, W, 3], computed as a batch of one in this process."""
    with torch.no_grad():
        purified = load_purifier_artifact(champion)(to_float(torch.from_numpy(pixels[None])))
    output: np.ndarray = to_uint8(purified).numpy()[0]
    return output
