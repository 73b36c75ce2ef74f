"""Tiny real models behind a real service, driven in this process; only test_server.py starts Ray."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from maep import artifact
from maep.artifact import Artifact
from maep.config import to_dict
from maep.models.build import build_model
from maep.models.classifiers.load import CifarResNet
from maep_serve import images
from maep_serve.api import create_api
from maep_serve.config import ServeConfig
from maep_serve.engine.loading import Models, build_models
from maep_serve.engine.service import Service
from maep_serve.problems import CODES, CONTENT_TYPE

MAE = {"image_size": [16, 16], "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2}
MODEL = {"name": "purifier", "mae": {**MAE, "decoder_width": 16, "decoder_heads": 2}, "stem_channels": [4, 8]}


@pytest.fixture(scope="session")
def purifier_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A purifier for 16 x 16 pixels with random weights, that changes what it is given."""
    torch.manual_seed(0)
    model = build_model(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("purifier") / "purifier"
    config = {"model": to_dict(model.config), "data": {"name": "digits"}}
    return artifact.write(folder, "purifier", config, model.state_dict(), "# A purifier with random weights\n")


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the digits with random weights."""
    torch.manual_seed(1)
    shape = {"depth": 8, "num_classes": 10, "width": 4}
    config = {"name": "tiny", "model": shape, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    folder = tmp_path_factory.mktemp("classifier") / "classifier"
    artifact.write(folder, "classifier", config, CifarResNet(**shape).state_dict(), "# Random weights\n")
    return folder


@pytest.fixture(scope="session")
def config(purifier_artifact: Artifact, classifier_folder: Path) -> ServeConfig:
    return ServeConfig(
        model=str(purifier_artifact.folder),
        classifier=str(classifier_folder),
        max_batch_size=8,
        batch_wait_ms=0,
        max_body_bytes=200_000,
        max_pixels=300 * 300,
    )


@pytest.fixture(scope="session")
def models(purifier_artifact: Artifact, config: ServeConfig) -> Models:
    return build_models(purifier_artifact, config)


@pytest.fixture
def client(config: ServeConfig, models: Models) -> Iterator[TestClient]:
    with TestClient(create_api(Service(config, models))) as client:
        yield client


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    """`picture(height, width, seed)`: a smooth uint8 [H, W, 3] picture."""

    def make(height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
        small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))

    return make


@pytest.fixture(scope="session")
def png(picture: Callable[..., np.ndarray]) -> Callable[..., bytes]:
    """`png(height, width, seed)`: that picture as PNG bytes."""

    def make(height: int = 16, width: int = 16, seed: int = 0) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture(height, width, seed)).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def pixels_of() -> Callable[[bytes], torch.Tensor]:
    """`pixels_of(data)`: uint8 [1, 3, H, W] of PNG or JPEG bytes."""
    return lambda data: images.decode(data, 10**6)


@pytest.fixture(scope="session")
def offline() -> Callable[[Models, bytes], torch.Tensor]:
    """`offline(models, data)`: the purifier called directly, rounded to 8 bits."""

    def purify(models: Models, data: bytes) -> torch.Tensor:
        with torch.inference_mode():
            return images.to_uint8(models.purifier(images.to_float(images.decode(data, 10**6))))

    return purify


@pytest.fixture(scope="session")
def is_problem() -> Callable[[httpx.Response, str], bool]:
    """`is_problem(response, code)`: whether the answer is a well-formed problem document with that code."""

    def check(response: httpx.Response, code: str) -> bool:
        body = response.json()
        assert response.headers["content-type"] == CONTENT_TYPE
        protocol = {"error"} if "/v2" in response.url.path else set()
        assert set(body) == {"type", "title", "status", "detail", "code"} | protocol
        assert response.status_code == body["status"] == CODES[body["code"]][0]
        assert "\n" not in body["detail"]
        return bool(body["code"] == code)

    return check
