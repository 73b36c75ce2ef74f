"""Random damage to valid bodies, through the routes: a result or a problem, never a crash, and no memory leak."""

from __future__ import annotations

import io
import random
import resource
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

Make = Callable[[random.Random], tuple[str, dict[str, str], bytes]]


def originals(picture: Callable[..., np.ndarray]) -> list[tuple[str, dict[str, str], bytes]]:
    """Route, headers and body of valid requests of every kind."""
    image = Image.fromarray(picture(12, 14))
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[str, dict[str, str], bytes]] = []

    def add(kind: str, picture: Image.Image, **options: object) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        made.append(("/v1/purify", {"content-type": f"image/{kind.lower()}"}, buffer.getvalue()))

    for mode in ("RGB", "RGBA", "L", "P", "1"):
        add("PNG", image.convert(mode))
    for options in ({}, {"progressive": True}, {"exif": exif.tobytes()}):
        add("JPEG", image, **options)
    for options in ({"lossless": True}, {"quality": 50}, {"lossless": True, "exif": exif.tobytes()}):
        add("WEBP", image.convert("RGBA"), **options)
    shape = {"content-type": "application/octet-stream", "x-shape": "12,14,3"}
    made.append(("/v1/purify", {**shape, "x-dtype": "uint8"}, np.asarray(image).tobytes()))
    floats = (np.asarray(image) / 255).astype("<f4").tobytes()
    made.append(("/v1/purify", {**shape, "x-dtype": "float32"}, floats))
    text = b'{"inputs":[{"name":"images","datatype":"UINT8","shape":[2,2,3],"data":[1,2,3,4,5,6,7,8,9,10,11,12]}]}'
    made.append(("/v2/models/purifier/infer", {"content-type": "application/json"}, text))
    text = b'{"inputs":[{"name":"images","datatype":"FP32","shape":[1,1,3],"parameters":{"binary_data_size":12}}]}'
    made.append(("/v2/models/purifier/infer", {"inference-header-content-length": str(len(text))}, text + bytes(12)))
    return made


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Change, remove, repeat or move some bytes, preferably in the header."""
    damaged = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        end = min(len(damaged), draw.choice((40, len(damaged))))
        place = draw.randrange(end) if end else 0
        match draw.randrange(5):
            case 0 | 1:
                damaged[place : place + 1] = bytes([draw.randrange(256)])
            case 2:
                damaged[place : place + 1] = bytes([draw.choice((0, 1, 127, 128, 255))]) * draw.randint(1, 4)
            case 3:
                del damaged[place : place + draw.randint(1, 16)]
            case 4:
                damaged[place:place] = damaged[place : place + draw.randint(1, 16)]
    return bytes(damaged)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_bodies_get_a_result_or_a_problem(client: TestClient, picture, is_problem, count: int):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    valid = originals(picture)
    for route, headers, body in valid:
        assert client.post(route, content=body, headers=headers).status_code == 200
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    codes: dict[str, int] = {}
    for number in range(count):
        route, headers, body = draw.choice(valid)
        body = mutated(draw, body)
        answer = client.post(route, content=body, headers=headers)
        if answer.status_code == 200:
            codes["taken"] = codes.get("taken", 0) + 1
            continue
        assert 400 <= answer.status_code < 500, f"seed {seed}, number {number}: {body!r}"
        code = answer.json()["code"]
        assert is_problem(answer, code)
        codes[code] = codes.get(code, 0) + 1
    print(codes)
    assert {"not-an-image", "invalid-tensor", "invalid-request"} <= set(codes)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 64, f"seed {seed}: {grown:.0f} MiB more"
    assert client.get("/readyz").status_code == 200
