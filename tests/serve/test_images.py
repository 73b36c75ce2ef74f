"""Bytes to pixels and back: what is converted, what is refused, and before how much work."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from maep_serve import images
from maep_serve.problems import Problem

LIMIT = 100 * 100


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def code_of(data: bytes) -> str:
    with pytest.raises(Problem) as caught:
        images.decode(data, LIMIT)
    return caught.value.code


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_png_round_trip_is_exact(picture):
    pixels = images.decode(encoded(Image.fromarray(picture(9, 14))), LIMIT)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (1, 3, 9, 14)
    np.testing.assert_array_equal(pixels[0].permute(1, 2, 0), picture(9, 14))
    assert torch.equal(images.decode(images.encode(pixels), LIMIT), pixels)
    assert torch.equal(images.to_uint8(images.to_float(pixels)), pixels)


def test_jpeg_is_what_pillow_decodes(picture):
    data = encoded(Image.fromarray(picture(16, 24)), "JPEG", quality=90)
    np.testing.assert_array_equal(
        images.decode(data, LIMIT)[0].permute(1, 2, 0), np.asarray(Image.open(io.BytesIO(data)))
    )


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_other_modes_become_rgb(picture, mode):
    image = Image.fromarray(picture()).convert(mode)
    pixels = images.decode(encoded(image), LIMIT)
    np.testing.assert_array_equal(pixels[0].permute(1, 2, 0), np.asarray(image.convert("RGB")))


def test_transparency_is_composited_on_white():
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    pixels = images.decode(encoded(image), LIMIT)[0]
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 0, 1].tolist() == [200, 0, 0]


def test_exif_orientation_is_applied(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    turned = images.decode(encoded(Image.fromarray(picture(10, 20)), "JPEG", exif=exif.tobytes()), LIMIT)
    plain = images.decode(encoded(Image.fromarray(picture(10, 20)), "JPEG"), LIMIT)
    assert torch.equal(turned, plain.rot90(-1, (2, 3)))


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims this size."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def with_chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    data = png_header(8, 8)
    return (
        data[:33] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) + data[33:]
    )


BOMB = zlib.compress(bytes(32 * 2**20), 9)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (png_header(2**31, 2**31), "too-many-pixels"),
        (png_header(2**31 - 1, 1), "too-many-pixels"),
        (png_header(0, 8), "not-an-image"),
        (jpeg_header(65535, 65535), "too-many-pixels"),
        (jpeg_header(0, 8), "not-an-image"),
        (with_chunk(b"zTXt", b"comment\0\0" + BOMB), "not-an-image"),
        (with_chunk(b"iCCP", b"profile\0\0" + BOMB), "not-an-image"),
        (with_chunk(b"iTXt", b"comment\0\1\0\0\0" + BOMB), "not-an-image"),
        (b"", "not-an-image"),
        (b"hello", "not-an-image"),
        (b"GIF89a" + bytes(64), "not-an-image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "not-an-image"),
        (b"\xff\xd8\xff" + bytes(64), "not-an-image"),
        (png_header(65535, 65535), "too-many-pixels"),
        (png_header(20_000, 20_000), "too-many-pixels"),
        (png_header(8, 8), "not-an-image"),
        (encoded(Image.new("CMYK", (8, 8)), "JPEG"), "unsupported-image"),
        (encoded(Image.new("I;16", (8, 8))), "unsupported-image"),
        (
            encoded(Image.new("L", (8, 8)), save_all=True, append_images=[Image.new("L", (8, 8), 9)]),
            "unsupported-image",
        ),
    ],
)
def test_invalid_input_has_a_stable_code(data, code):
    assert code_of(data) == code


def test_a_progressive_jpeg_is_accepted_but_not_with_too_many_scans(picture):
    data = encoded(Image.fromarray(picture(16, 16)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scans, scan = data.count(b"\xff\xda"), data[last:-2]

    def repeated(count: int) -> bytes:
        return data[:-2] + scan * (count - scans) + data[-2:]

    assert images.decode(data, LIMIT).shape == images.decode(repeated(100), LIMIT).shape == (1, 3, 16, 16)
    assert code_of(repeated(101)) == "unsupported-image"
    with pytest.raises(Problem) as caught:
        images.num_pixels(repeated(101), LIMIT)
    assert caught.value.code == "unsupported-image"


def test_a_colour_profile_is_accepted_but_not_thousands(picture):
    """Each is a kilobyte that is inflated to a megabyte."""
    data = encoded(Image.fromarray(picture(8, 8)))
    profile = with_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**20)))[33 : -len(png_header(8, 8)) + 33]
    assert images.decode(data[:33] + profile + data[33:], LIMIT).shape == (1, 3, 8, 8)
    with pytest.raises(Problem) as caught:
        images.num_pixels(data[:33] + 8000 * profile + data[33:], LIMIT)
    assert caught.value.code == "not-an-image"


def test_pixels_are_counted_from_the_header_alone():
    assert images.num_pixels(png_header(90, 100), LIMIT) == 90 * 100
    with pytest.raises(Problem, match="101 x 100") as caught:
        images.num_pixels(png_header(101, 100), LIMIT)
    assert caught.value.code == "too-many-pixels"


def test_only_small_pngs_are_small(picture):
    assert images.is_small(encoded(Image.fromarray(picture(32, 32))))
    assert images.is_small(encoded(Image.new("RGB", (256, 256))))
    assert not images.is_small(encoded(Image.new("RGB", (257, 256))))
    assert not images.is_small(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    assert not images.is_small(png_header(8, 8) + bytes(8192))
    assert not images.is_small(b"\x89PNG\r\n\x1a\n")


def test_sixteen_bit_rgb_is_refused_although_pillow_would_read_it():
    data = bytearray(png_header(8, 8))
    data[24] = 16
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert code_of(bytes(data)) == "unsupported-image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused_and_never_half_decoded(picture, kind):
    data = encoded(Image.fromarray(picture(24, 24)), kind)
    for length in range(0, len(data), 7):
        try:
            pixels = images.decode(data[:length], LIMIT)
        except Problem as problem:
            assert problem.code == "not-an-image"  # noqa: PT017
        else:  # all that lacked was a checksum or the end marker
            assert length > 0.9 * len(data)
            assert torch.equal(pixels, images.decode(data, LIMIT))
