from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from maep import seeding
from maep.data.reading import cropping
from maep.data.reading.cropping import CropBox, decode_crop
from maep.data.reading.decoding import Undecodable, decode
from maep.data.stream.augmentation import crop_and_flip, crop_box, epoch_order


def pictures(num: int, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, height, width, 3), dtype=torch.uint8, generator=generator)


def test_augmentation_is_independent_of_the_batch() -> None:
    images, indices = pictures(40), torch.arange(1000, 1040)
    whole = crop_and_flip(images, indices, seed=3, epoch=2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert (crop_and_flip(images[order], indices[order], 3, 2) == whole[order]).all()
    assert (crop_and_flip(images[7:8], indices[7:8], 3, 2) == whole[7:8]).all()
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8


def test_seed_epoch_and_index_each_change_the_draw() -> None:
    images, indices = pictures(1).expand(64, -1, -1, -1), torch.arange(64)
    base = crop_and_flip(images, indices, 0, 0)
    assert len({image.numpy().tobytes() for image in base}) > 32
    assert not (crop_and_flip(images, indices, 1, 0) == base).all()
    assert not (crop_and_flip(images, indices, 0, 1) == base).all()
    assert (crop_and_flip(images, indices, 0, 0) == base).all()


def test_crops_are_windows_of_the_padded_image_and_all_occur() -> None:
    num, pad = 2000, 2
    images, indices = pictures(1).expand(num, -1, -1, -1), torch.arange(num)
    wide = np.pad(images[0].numpy(), ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    windows = {}
    for y in range(2 * pad + 1):
        for x in range(2 * pad + 1):
            window = wide[y : y + 12, x : x + 10]
            windows[window.tobytes()] = (y, x, False)
            windows[window[:, ::-1].tobytes()] = (y, x, True)
    drawn = crop_and_flip(images, indices, 0, 0, pad=pad)
    counts: dict[tuple[int, int, bool], int] = dict.fromkeys(windows.values(), 0)
    for image in drawn:
        counts[windows[image.numpy().tobytes()]] += 1
    expected = num / len(counts)  # 40 each of 50
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 90  # chi-square, 49 df: p = 0.0003


def test_no_padding_only_flips() -> None:
    images = pictures(30)
    result = crop_and_flip(images, torch.arange(30), 0, 0, pad=0)
    flipped = [(new == old.flip(1)).all().item() for new, old in zip(result, images, strict=True)]
    same = [(new == old).all().item() for new, old in zip(result, images, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 5 < sum(flipped) < 25


def test_the_order_of_an_epoch_is_a_fixed_permutation() -> None:
    first = epoch_order(1000, seed=5, epoch=0)
    assert sorted(first.tolist()) == list(range(1000))
    assert first.dtype == np.int64
    assert (epoch_order(1000, 5, 0) == first).all()
    assert not (epoch_order(1000, 5, 1) == first).all()
    assert not (epoch_order(1000, 6, 0) == first).all()
    assert epoch_order(8, 0, 0).tolist() == [
        0,
        4,
        3,
        6,
        7,
        5,
        1,
        2,
    ]  # for ever: a resumed run relies on it


@pytest.mark.gpu
def test_gpu_and_cpu_augment_alike() -> None:
    images, indices = pictures(64), torch.arange(64)
    there = crop_and_flip(images.cuda(), indices.cuda(), 1, 2)
    assert (there.cpu() == crop_and_flip(images, indices, 1, 2)).all()


SIZE = (375, 500)


def test_box_depends_on_seed_epoch_and_index_alone() -> None:
    boxes = [crop_box(index, 3, 7, SIZE) for index in range(100)]
    assert len(set(boxes)) == 100
    assert [crop_box(index, 3, 7, SIZE) for index in reversed(range(100))] == boxes[::-1]
    assert crop_box(5, 4, 7, SIZE) != boxes[5] != crop_box(5, 3, 8, SIZE)
    # for ever: a resumed run relies on it
    assert boxes[:2] == [CropBox(9, 218, 307, 245, False), CropBox(3, 104, 369, 376, True)]


def test_single_draws_are_those_of_the_tensors() -> None:
    key, index = seeding.mix(1, 2), 2**62 + 12345
    word = seeding.draws(key, torch.tensor([index]))
    assert seeding.draw(int(key), index) == int(word) % 2**64
    stream = seeding.stream(int(word))
    assert [next(stream) for _ in range(9)] == seeding.uniform(word, 9)[0].tolist()


@pytest.mark.parametrize("size", [SIZE, (500, 375), (160, 480)])
def test_boxes_are_distributed_as_in_torchvision(size: tuple[int, int]) -> None:
    """Two-sample Kolmogorov-Smirnov on area, ratio and place; the third size often comes to the central box."""
    num = 3000
    torch.manual_seed(0)
    reference = v2.RandomResizedCrop(224, scale=(0.2, 1.0))
    image = torch.empty(3, *size, dtype=torch.uint8)
    theirs = [reference.make_params([image]) for _ in range(num)]
    ours = [crop_box(index, 0, 0, size) for index in range(num)]
    for quantity in (
        lambda box: box["height"] * box["width"],
        lambda box: box["width"] / box["height"],
        lambda box: box["top"],
        lambda box: box["left"],
    ):
        one = np.sort([quantity(box._asdict()) for box in ours])
        other = np.sort([quantity(box) for box in theirs])
        every = np.concatenate([one, other])
        apart = np.abs(np.searchsorted(one, every, "right") - np.searchsorted(other, every, "right")).max() / num
        assert apart < 1.95 * (2 / num) ** 0.5  # p = 0.001
    assert 0.46 < np.mean([box.flip for box in ours]) < 0.54


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (224, 224), (3, 4)])
def test_every_box_lies_in_the_image(size: tuple[int, int]) -> None:
    for index in range(200):
        box = crop_box(index, 0, 0, size)
        assert 0 <= box.top < box.top + box.height <= size[0]
        assert 0 <= box.left < box.left + box.width <= size[1]


def jpeg(pixels: np.ndarray, size: tuple[int, int], **options: Any) -> bytes:
    """The image enlarged to (width, height) `size`."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    image.convert(options.pop("mode", "RGB")).save(buffer, **{"format": "JPEG", "quality": 92, **options})
    return buffer.getvalue()


def photographs(shared_data: Path, num: int) -> list[np.ndarray]:
    rows = pq.read_table(shared_data / "imagenet_slice" / "val_256.parquet", columns=["image"])
    return [np.asarray(decode(image.as_py())) for image in rows["image"][:num]]


def torchvisions(data: bytes, box: CropBox, side: int = 224) -> np.ndarray:
    whole = torch.from_numpy(np.array(decode(data))).permute(2, 0, 1)
    made = functional.resized_crop(whole, *box[:4], [side, side], InterpolationMode.BICUBIC, antialias=True)
    return (made.flip(2) if box.flip else made).permute(1, 2, 0).numpy()


@pytest.fixture(params=["pillow", "simplejpeg"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the pixels."""
    if request.param == "pillow":
        monkeypatch.setattr(cropping, "_simplejpeg", lambda: None)
    elif importlib.util.find_spec("simplejpeg") is None:
        pytest.skip("simplejpeg is not installed")
    return str(request.param)


@pytest.mark.usefixtures("decoder")
@pytest.mark.shared_data
def test_crop_matches_torchvision_bit_for_bit(shared_data: Path) -> None:
    for index, pixels in enumerate(photographs(shared_data, 16)):
        data = jpeg(pixels, (500, 375))
        crop = decode_crop(data, 224, lambda size, index=index: crop_box(index, 0, 0, size))
        assert crop.dtype == np.uint8
        assert crop.flags.c_contiguous
        assert (crop == torchvisions(data, crop_box(index, 0, 0, SIZE))).all()


@pytest.mark.usefixtures("decoder")
@pytest.mark.shared_data
def test_reduced_decoding_of_large_images_is_close(shared_data: Path) -> None:
    """Within 1.5 grey levels on average of the whole image decoded."""
    for index, pixels in enumerate(photographs(shared_data, 8)):
        data = jpeg(pixels, (1603, 1203))
        box = crop_box(index, 0, 0, (1203, 1603))
        crop = decode_crop(data, 224, lambda size, index=index: crop_box(index, 0, 0, size))
        assert np.abs(crop.astype(int) - torchvisions(data, box)).mean() < 1.5


@pytest.mark.usefixtures("decoder")
def test_other_formats_are_cropped(noise: Any) -> None:
    (pixels,) = noise(1, 60, 80)
    for options in ({"format": "PNG"}, {"mode": "L"}, {"progressive": True}):
        data = jpeg(pixels, (80, 60), **options)
        crop = decode_crop(data, 60, lambda size: CropBox(0, 10, 60, 60, True))
        assert (crop == np.asarray(decode(data))[:, 10:70][:, ::-1]).all()


@pytest.mark.usefixtures("decoder")
def test_damaged_images_raise_undecodable(noise: Any) -> None:
    (pixels,) = noise(1, 60, 80)
    whole = jpeg(pixels, (80, 60))
    for data in (b"", b"<html>", whole[: len(whole) // 2], jpeg(pixels, (80, 60), format="PNG")[:200]):
        with pytest.raises(Undecodable):
            decode_crop(data, 32, lambda size: crop_box(0, 0, 0, size))
