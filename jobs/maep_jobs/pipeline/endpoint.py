"""The last stage of the chain: the endpoint is started, and one golden request must answer as the champion does."""

from __future__ import annotations

import dataclasses
import io
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image

from maep.artifact import Artifact
from maep.data.datasets import load
from maep.data.image_set import to_float, to_uint8
from maep.data.lists import named, pick
from maep.evaluate.config import EvaluateConfig
from maep.models.build import load_purifier_artifact
from maep.tracking.client import TrackingConfig
from maep.tracking.resolve import resolve
from maep_jobs.failure import JobFailed
from maep_serve.client.client import Client, token_of_environment
from maep_serve.config import ServeConfig


def check_endpoint(
    serve: ServeConfig, tracking: TrackingConfig, evaluation: EvaluateConfig, keep: bool = False
) -> dict[str, Any]:
    """Starts the endpoint, compares one answer with the offline output byte for byte, and stops it (or keeps it).

    Raises JobFailed where they differ: what was evaluated would not be what is served.
    """
    from maep_serve.ray.server import start

    champion = resolve(serve.model, tracking)
    with start(dataclasses.replace(serve, model=str(champion.folder))) as server:
        pixels = _golden_image(evaluation)
        with Client(server.url, token_of_environment()) as client:
            answer = np.asarray(Image.open(io.BytesIO(client.purify(_png(pixels)).image)).convert("RGB"))
        identical = bool((answer == offline(champion, pixels)).all()) and server.purifier_sha256 == champion.sha256
        if not identical:
            raise JobFailed("the endpoint's answer differs from the champion's offline output")
        if keep:
            print(f"the endpoint stays up at {server.url}/ (Ctrl-C stops it)", file=sys.stderr, flush=True)
            server.wait()
        return {"url": server.url, "sha256": champion.sha256, "identical": identical}


def offline(champion: Artifact, pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the purified image, as a batch of one in this process."""
    with torch.no_grad():
        purified = load_purifier_artifact(champion)(to_float(torch.from_numpy(pixels[None])))
    output: np.ndarray = to_uint8(purified).numpy()[0]
    return output


def _golden_image(evaluation: EvaluateConfig) -> np.ndarray:
    images = named(evaluation.images)
    pixels: np.ndarray = pick(load(evaluation.data, images.split), images).pixels([0])[0]
    return pixels


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
