"""Raw tensors as input and output, and the forms of a response."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from maep_serve import images
from maep_serve.api import create_api
from maep_serve.engine.service import Service
from maep_serve.http.responses import Form, wanted
from maep_serve.problems import Problem

PNG = {"content-type": "image/png"}
RAW = "application/octet-stream"


def tensor_headers(array: np.ndarray, **more: str) -> dict[str, str]:
    return {"content-type": RAW, "x-shape": ",".join(map(str, array.shape)), "x-dtype": str(array.dtype), **more}


def offline_float(models, array_HWC: np.ndarray) -> np.ndarray:
    """The purifier called on float32 [H, W, 3] in this process."""
    with torch.inference_mode():
        purified = models.purifier(torch.from_numpy(array_HWC).permute(2, 0, 1)[None].contiguous())
    return purified[0].permute(1, 2, 0).numpy()


def test_a_uint8_tensor_equals_its_png(client, picture, png, models, offline):
    answer = client.post("/v1/purify", content=picture().tobytes(), headers=tensor_headers(picture(), accept=RAW))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == RAW
    assert answer.headers["x-shape"] == "16,16,3"
    assert answer.headers["x-dtype"] == "uint8"
    assert answer.headers["x-maep-purifier"] == models.purifier_sha256
    purified = np.frombuffer(answer.content, np.uint8).reshape(16, 16, 3)
    np.testing.assert_array_equal(purified, offline(models, png())[0].permute(1, 2, 0))
    as_png = client.post("/v1/purify", content=picture().tobytes(), headers=tensor_headers(picture()))
    assert as_png.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(as_png.content))), purified)


def test_a_float_tensor_is_purified_without_rounding(client, picture, models):
    given = (picture(16, 16, 3) / 255).astype("f4") * 0.999
    answer = client.post("/v1/purify", content=given.tobytes(), headers=tensor_headers(given, accept=RAW))
    purified = np.frombuffer(answer.content, "<f4").reshape(16, 16, 3)
    np.testing.assert_array_equal(purified, offline_float(models, given))
    assert answer.headers["x-dtype"] == "float32"
    rounded = client.post(
        "/v1/purify", content=given.tobytes(), headers=tensor_headers(given, accept=f"{RAW};dtype=uint8")
    )
    np.testing.assert_array_equal(
        np.frombuffer(rounded.content, np.uint8).reshape(16, 16, 3), np.round(purified * 255).astype(np.uint8)
    )


def test_an_image_can_be_returned_unrounded(client, picture, png, models):
    answer = client.post("/v1/purify", content=png(), headers={**PNG, "accept": f"{RAW};dtype=float32"})
    expected = offline_float(models, (picture() / np.float32(255)).astype("f4"))
    np.testing.assert_array_equal(np.frombuffer(answer.content, "<f4").reshape(16, 16, 3), expected)


def test_jpeg_only_if_requested(client, png, models, offline):
    for accept, kind in (("*/*", "png"), ("image/*", "png"), ("text/html", "png"), ("image/jpeg", "jpeg")):
        answer = client.post("/v1/purify", content=png(), headers={**PNG, "accept": accept})
        assert answer.headers["content-type"] == f"image/{kind}"
    image = np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)
    assert np.abs(image - offline(models, png())[0].permute(1, 2, 0).numpy()).mean() < 4


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Form("png")),
        ("image/jpeg;q=0.5, image/png;q=0.9", Form("png")),
        ("image/jpeg, image/png;q=0.9", Form("jpeg")),
        ("image/jpeg;q=0", Form("png")),
        ("image/jpeg;q=much", Form("png")),
        (f"{RAW}; dtype=float32; q=1", Form("raw", "float32")),
        (RAW.upper(), Form("raw")),
    ],
)
def test_accept_selects_the_form(accept, form):
    assert wanted(accept) == form
    with pytest.raises(Problem, match="float64"):
        wanted(f"{RAW};dtype=float64")


NAN, INFINITY, LARGE = (np.full((4, 4, 3), value, "f4") for value in (np.nan, np.inf, 1.01))


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (NAN.tobytes(), tensor_headers(NAN), "invalid-tensor"),
        (INFINITY.tobytes(), tensor_headers(INFINITY), "invalid-tensor"),
        ((-INFINITY).tobytes(), tensor_headers(INFINITY), "invalid-tensor"),
        (LARGE.tobytes(), tensor_headers(LARGE), "invalid-tensor"),
        (bytes(47), {"x-shape": "4,4,3", "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(49), {"x-shape": "4,4,3", "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "4,4,3", "x-dtype": "float32"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "4,4,3", "x-dtype": "float64"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "4,4,3"}, "invalid-tensor"),
        (bytes(48), {"x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "-4,-4,3", "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "4,4,-3", "x-dtype": "uint8"}, "invalid-tensor"),
        (b"", {"x-shape": "0,4,3", "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "3,4,4", "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "4,12", "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "4,4,3,1,1", "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "4;4;3", "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "4.0,4,3", "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "9" * 4000, "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(96), {"x-shape": "2,4,4,3", "x-dtype": "uint8"}, "invalid-tensor"),
        (bytes(48), {"x-shape": "65535,65535,3", "x-dtype": "uint8"}, "too-many-pixels"),
        (bytes(48), {"x-shape": "999999999,999999999,3", "x-dtype": "float32"}, "too-many-pixels"),
        (bytes(200_001), {"x-shape": "4,4,3", "x-dtype": "uint8"}, "body-too-large"),
    ],
)
def test_bad_tensors_are_problems(client, is_problem, body, headers, code):
    for route in ("/v1/purify", "/v1/classify"):
        assert is_problem(client.post(route, content=body, headers={"content-type": RAW, **headers}), code)


def test_classify_takes_tensors(client, picture, png):
    answers = [
        client.post("/v1/classify", content=picture().tobytes(), headers=tensor_headers(picture())).json(),
        client.post("/v1/classify", content=png(), headers=PNG).json(),
    ]
    assert answers[0] == answers[1]


def test_a_float_tensor_reserves_four_times_the_pixels(config, models, is_problem):
    zeros = np.zeros((127, 131, 3), "f4")  # fewer pixels than a small image's, and four times their bytes
    assert zeros[..., 0].size < images.SMALL < 4 * zeros[..., 0].size
    service = Service(dataclasses.replace(config, max_pixels_in_flight=300 * 300), models)
    with TestClient(create_api(service)) as client, service.reservation(300 * 300):
        refused = client.post("/v1/purify", content=zeros.tobytes(), headers=tensor_headers(zeros))
        assert is_problem(refused, "queue-full")
        few = zeros.astype("u1")
        assert client.post("/v1/purify", content=few.tobytes(), headers=tensor_headers(few)).status_code == 200
