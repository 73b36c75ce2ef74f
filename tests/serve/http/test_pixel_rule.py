"""One rule from file to pixels: training, evaluation, `maep purify` and the endpoint see the same image, or none."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import struct
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from maep.data.datasets import DataConfig, load
from maep.data.reading import cropping
from maep.data.reading.cropping import CropBox, decode_crop
from maep.data.reading.decoding import Undecodable
from maep.data.stream.loaders import LoaderConfig, open_images
from maep.data.stream.plan import Sampling
from maep.data.stream.streaming import ThreadLoader
from maep.errors import DataError
from maep_serve import images
from maep_serve.client.in_process import InProcess
from maep_serve.client.results import ProblemError

SIDE = 16
RGB = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = RGB[..., 0]
THREE_GREY = np.repeat(GREY[..., None], 3, axis=2)
HALF = np.where(np.arange(SIDE)[:, None] < SIDE // 2, 0, 255).astype(np.uint8).repeat(SIDE, axis=1)
"""An alpha channel: the upper half is transparent."""


def encoded(pixels: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(HALF[..., None] == 0, np.uint8(255), pixels)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def palette() -> tuple[Image.Image, NDArray[np.uint8]]:
    image = Image.fromarray(RGB).quantize(16)
    return image, np.asarray(image.convert("RGB"))


def sixteen_bit_rgb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def clear_palette() -> tuple[bytes, NDArray[np.uint8]]:
    image, pixels = palette()
    return encoded(image, transparency=0), np.where((np.asarray(image) == 0)[..., None], np.uint8(255), pixels)


JPEG = encoded(RGB, "JPEG", quality=90)
JPEG_RGB = np.asarray(Image.open(io.BytesIO(JPEG)))

ACCEPTED: dict[str, tuple[bytes, NDArray[np.uint8]]] = {
    "rgb.png": (encoded(RGB), RGB),
    "grey.png": (encoded(GREY), THREE_GREY),
    "bits.png": (encoded(Image.fromarray(HALF).convert("1")), HALF[..., None].repeat(3, axis=2)),
    "palette.PNG": (encoded(palette()[0]), palette()[1]),
    "clear-palette.png": clear_palette(),
    "alpha.png": (encoded(np.dstack([RGB, HALF])), on_white(RGB)),
    "grey-alpha.png": (
        encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(HALF)])),
        on_white(THREE_GREY),
    ),
    "turned.png": (encoded(RGB, exif=exif(6)), np.rot90(RGB, -1)),
    "rgb.JPEG": (JPEG, JPEG_RGB),
    "upright.jpg": (encoded(RGB, "JPEG", quality=90, exif=exif(1)), JPEG_RGB),
    "turned-6.jpg": (encoded(RGB, "JPEG", quality=90, exif=exif(6)), np.rot90(JPEG_RGB, -1)),
    "turned-5.jpg": (encoded(RGB, "JPEG", quality=90, exif=exif(5)), JPEG_RGB.transpose(1, 0, 2)),
    "unreadable-exif.jpg": (encoded(RGB, "JPEG", quality=90, exif=b"Exif\0\0no TIFF header"), JPEG_RGB),
    "alpha.webp": (encoded(np.dstack([RGB, HALF]), "WEBP", lossless=True, exact=True), on_white(RGB)),
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "cmyk.jpg": (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "unsupported-image"),
    "grey-16.png": (encoded(GREY.astype(np.uint16) * 257), "unsupported-image"),
    "rgb-16.png": (sixteen_bit_rgb(), "unsupported-image"),
    "animated.png": (
        encoded(Image.fromarray(RGB), save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]),
        "unsupported-image",
    ),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "not-an-image"),
    "text.png": (b"<html>", "not-an-image"),
}


@pytest.fixture(params=["pillow", "simplejpeg"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pillow":
        monkeypatch.setattr(cropping, "_simplejpeg", lambda: None)
    elif importlib.util.find_spec("simplejpeg") is None:
        pytest.skip("simplejpeg is not installed")


@pytest.fixture
def in_folder(tmp_path: Path) -> Callable[[str, bytes], DataConfig]:
    """Writes a file as the only training image; returns the data set's configuration."""

    def write(name: str, data: bytes) -> DataConfig:
        (tmp_path / "imagenet" / "train" / "a").mkdir(parents=True)
        (tmp_path / "imagenet" / "train" / "a" / name).write_bytes(data)
        return DataConfig("imagenet", str(tmp_path), image_size=SIDE)

    return write


def trained_on(data: DataConfig) -> NDArray[np.uint8]:
    streamed = open_images(LoaderConfig("stream"), data)
    loader = ThreadLoader(streamed, Sampling(1, augment=False), torch.device("cpu"), 1)  # type: ignore[arg-type]
    with closing(loader.parts(0, 1)) as parts:
        return next(parts).pixels[0].numpy()


def augmented(data: bytes) -> NDArray[np.uint8]:
    return decode_crop(data, SIDE, lambda size: CropBox(0, 0, *size, False))


async def purified(artifact: Any, config: Any, data: bytes) -> bytes:
    async with InProcess(artifact, config) as purifier:
        return (await purifier.purify(data)).image


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", ACCEPTED)
def test_four_paths_give_the_same_pixels(
    name: str, in_folder: Any, client: TestClient, purifier_artifact: Any, config: Any, models: Any, pixels_of: Any
) -> None:
    data, expected = ACCEPTED[name]
    settings = in_folder(name, data)
    np.testing.assert_array_equal(load(settings, "train").pixels([0])[0], expected)
    np.testing.assert_array_equal(trained_on(settings), expected)
    np.testing.assert_array_equal(augmented(data), expected)
    tensor = torch.from_numpy(expected.copy()).permute(2, 0, 1)[None]
    np.testing.assert_array_equal(images.decode(data, SIDE**2), tensor)
    with torch.inference_mode():
        clean = images.to_uint8(models.purifier(images.to_float(tensor)))
    media_type = {"png": "image/png", "webp": "image/webp"}.get(name.lower().rpartition(".")[2], "image/jpeg")
    answer = client.post("/v1/purify", content=data, headers={"content-type": media_type, "accept": "image/png"})
    assert torch.equal(pixels_of(answer.content), clean)
    assert torch.equal(
        pixels_of(asyncio.run(purified(purifier_artifact, replace(config, classifier=None), data))), clean
    )


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", REFUSED)
def test_four_paths_refuse_the_same_files(
    name: str, in_folder: Any, client: TestClient, purifier_artifact: Any, config: Any, is_problem: Any
) -> None:
    data, code = REFUSED[name]
    settings = in_folder(name, data)
    with pytest.raises(DataError):
        load(settings, "train").pixels([0])
    with pytest.raises(DataError):
        trained_on(settings)
    with pytest.raises(Undecodable) as caught:
        augmented(data)
    assert caught.value.code == code
    media_type = "image/png" if name.endswith("png") else "image/jpeg"
    assert is_problem(client.post("/v1/purify", content=data, headers={"content-type": media_type}), code)
    with pytest.raises(ProblemError) as refused:
        asyncio.run(purified(purifier_artifact, replace(config, classifier=None), data))
    assert refused.value.code == code
