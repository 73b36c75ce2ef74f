"""WebP: decoded as Pillow does, and refused by its header if it is too large or animated."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from maep.data.reading import webp
from maep_serve import images
from maep_serve.problems import Problem

LIMIT = 100 * 100


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


def riff(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}, {"lossless": True, "exif": b"Exif\0\0"}])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (37, 90)])
def test_pixels_equal_pillows_and_the_header_gives_the_size(picture, options, height, width):
    data = encoded(Image.fromarray(picture(height, width)), **options)
    assert webp.read_header(data) == webp.WebPHeader(width, height, False)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(images.decode(data, LIMIT)[0].permute(1, 2, 0), expected)


def test_transparency_is_composited_on_white():
    data = encoded(Image.new("RGBA", (4, 4), (200, 0, 0, 0)), lossless=True)
    assert images.decode(data, LIMIT)[0, :, 0, 0].tolist() == [255, 255, 255]


EXTENDED = struct.pack("<I", 0) + (16384).to_bytes(3, "little") * 2


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (riff(b"VP8X", EXTENDED), "too-many-pixels"),
        (riff(b"VP8X", struct.pack("<I", 0) + b"\xff\xff\xff" * 2), "too-many-pixels"),
        (riff(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383)), "too-many-pixels"),
        (riff(b"VP8L", b"\x2f" + b"\xff\xff\xff\xff"), "too-many-pixels"),
        (riff(b"VP8X", b"\x02\0\0\0" + bytes(6)), "unsupported-image"),
        (
            encoded(Image.new("RGB", (8, 8)), save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]),
            "unsupported-image",
        ),
        (riff(b"VP8X", bytes(10)), "not-an-image"),
        (riff(b"VP8 ", bytes(30)), "not-an-image"),
        (riff(b"ALPH", bytes(30)), "not-an-image"),
        (b"RIFF\0\0\0\0WEBP", "not-an-image"),
        (b"RIFF\0\0\0\0WAVE", "not-an-image"),
    ],
)
def test_invalid_input_has_a_stable_code(data, code):
    with pytest.raises(Problem) as caught:
        images.decode(data, LIMIT)
    assert caught.value.code == code


def test_a_truncated_one_is_refused(picture):
    data = encoded(Image.fromarray(picture(24, 24)), lossless=True)
    for length in range(0, len(data) - 1, 11):
        with pytest.raises(Problem) as caught:
            images.decode(data[:length], LIMIT)
        assert caught.value.code == "not-an-image"


def test_the_route_accepts_it(client, picture, models, offline, pixels_of):
    data = encoded(Image.fromarray(picture()), lossless=True)
    answer = client.post("/v1/purify", content=data, headers={"content-type": "image/webp"})
    assert answer.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels_of(answer.content), offline(models, data))
