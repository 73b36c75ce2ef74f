from __future__ import annotations

import numpy as np
import pytest
import torch

from maep.data.augmentation import crop_and_flip, epoch_order


def pictures(num: int, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_an_image_is_augmented_alike_in_any_batch(padding: str) -> None:
    images, indices = pictures(40), torch.arange(1000, 1040)
    whole = crop_and_flip(images, indices, seed=3, epoch=2, padding=padding)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert (crop_and_flip(images[order], indices[order], 3, 2, padding=padding) == whole[order]).all()
    assert (crop_and_flip(images[7:8], indices[7:8], 3, 2, padding=padding) == whole[7:8]).all()
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8


def test_seed_epoch_and_index_each_change_the_draw() -> None:
    images, indices = pictures(1).expand(64, -1, -1, -1), torch.arange(64)
    base = crop_and_flip(images, indices, 0, 0)
    assert len({image.numpy().tobytes() for image in base}) > 32
    assert not (crop_and_flip(images, indices, 1, 0) == base).all()
    assert not (crop_and_flip(images, indices, 0, 1) == base).all()
    assert (crop_and_flip(images, indices, 0, 0) == base).all()


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "reflect"), ("zero", "constant")])
def test_each_result_is_a_window_of_the_padded_image_and_all_are_drawn(padding: str, mode: str) -> None:
    num, pad = 2000, 2
    images, indices = pictures(1).expand(num, -1, -1, -1), torch.arange(num)
    wide = np.pad(images[0].numpy(), ((pad, pad), (pad, pad), (0, 0)), mode=mode)  # type: ignore[call-overload]
    windows = {}
    for y in range(2 * pad + 1):
        for x in range(2 * pad + 1):
            window = wide[y : y + 12, x : x + 10]
            windows[window.tobytes()] = (y, x, False)
            windows[window[:, ::-1].tobytes()] = (y, x, True)
    drawn = crop_and_flip(images, indices, 0, 0, pad=pad, padding=padding)
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
def test_a_gpu_augments_as_the_cpu_does() -> None:
    images, indices = pictures(64), torch.arange(64)
    there = crop_and_flip(images.cuda(), indices.cuda(), 1, 2)
    assert (there.cpu() == crop_and_flip(images, indices, 1, 2)).all()
