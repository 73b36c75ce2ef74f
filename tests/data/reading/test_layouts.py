"""One reader of each layout: a set in memory and the same set streamed have the same images, labels and classes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maep.data.datasets import DataConfig, load
from maep.data.pack.archive import open_archive
from maep.data.stream.loaders import LoaderConfig, open_images
from maep.data.stream.plan import Sampling
from maep.data.stream.streaming import StreamedImages, ThreadLoader
from maep.errors import DataError

SYNSETS = ("n01440764", "n02102040", "n03000684")
LABELS = (0, 217, 491)


def streamed(data: DataConfig) -> StreamedImages:
    images = open_images(LoaderConfig("stream"), data)
    assert isinstance(images, StreamedImages)
    return images


def in_memory_and_streamed(root: Path) -> tuple[dict[int, int], dict[int, int], tuple[tuple[str, ...], ...]]:
    """Index -> label by either path, and the classes of either; the pixels are compared."""
    data = DataConfig("imagenet", str(root), image_size=16)
    loaded, images = load(data, "train"), streamed(data)
    with closing(
        ThreadLoader(images, Sampling(len(images), augment=False), torch.device("cpu"), 1).parts(0, 1)
    ) as parts:
        part = next(parts)
    pixels = dict(zip(part.indices.tolist(), part.pixels.numpy(), strict=True))
    for position, index in enumerate(loaded.indices.tolist()):
        assert (loaded.pixels([position])[0] == pixels[index]).all()
    return (
        dict(zip(loaded.indices.tolist(), loaded.labels.tolist(), strict=True)),
        dict(zip(part.indices.tolist(), part.labels.tolist(), strict=True)),
        (loaded.classes, images.classes),
    )


def write(root: Path, name: str, data: bytes) -> None:
    (root / "imagenet" / name).parent.mkdir(parents=True, exist_ok=True)
    (root / "imagenet" / name).write_bytes(data)


def test_hidden_files_and_folders_change_no_label(tmp_path: Path, noise: Any, encode: Any) -> None:
    names = ("0.png", "1.PNG", "2.jpg", "3.JPG", "4.jpeg", "5.JPEG", "6.webp")
    for k, pixels in enumerate(noise(3 * len(names), 16, 16)):
        name = names[k // 3]
        kind = {"png": "PNG", "webp": "WEBP"}.get(name[2:].lower(), "JPEG")
        write(tmp_path, f"train/{SYNSETS[k % 3]}/{name}", encode(pixels, kind))
    clean = in_memory_and_streamed(tmp_path)
    assert clean[0] == clean[1]
    assert sorted(clean[0].values()) == sorted(LABELS * len(names))
    whole = encode(noise(1, 16, 16)[0])
    for hidden in (".ipynb_checkpoints/a.png", f"{SYNSETS[0]}/._0.png", f"{SYNSETS[0]}/.cache/a.png", ".loose.png"):
        write(tmp_path, f"train/{hidden}", whole)
    for no_image in ("loose.png", f"{SYNSETS[1]}/deeper/a.png", f"{SYNSETS[1]}/notes.txt"):
        write(tmp_path, f"train/{no_image}", whole)
    assert in_memory_and_streamed(tmp_path) == clean
    (tmp_path / "imagenet" / "train" / "loose.png").unlink()  # packing asks for its label
    packed = open_archive(tmp_path / "imagenet" / "train")
    assert len(packed) == len(clean[0])
    assert set(packed.synsets) == set(SYNSETS)


def test_classes_are_numbered_over_all_parts(tmp_path: Path, noise: Any, encode: Any) -> None:
    for k, pixels in enumerate(noise(4, 16, 16)):
        write(tmp_path, f"train/{'bd'[k % 2]}/{k}.png", encode(pixels))
    (tmp_path / "imagenet" / "train" / "a").mkdir()
    write(tmp_path, "val/c/0.png", encode(noise(1, 16, 16)[0]))
    loaded, by_stream, classes = in_memory_and_streamed(tmp_path)
    assert loaded == by_stream
    assert sorted(loaded.values()) == [1, 1, 3, 3]
    assert classes == (("a", "b", "c", "d"),) * 2


def test_folder_without_images_is_refused_by_both_readers(tmp_path: Path) -> None:
    (tmp_path / "imagenet" / "train" / "a").mkdir(parents=True)
    data = DataConfig("imagenet", str(tmp_path), image_size=16)
    for opened in (lambda: load(data, "train"), lambda: streamed(data)):
        with pytest.raises(DataError, match=r"data\.root"):
            opened()


@pytest.mark.parametrize("indexed", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("column", ["image", "img"])
def test_parquet_gives_the_same_images_by_both_readers(
    column: str, indexed: tuple[bool, bool], tmp_path: Path, noise: Any, encode: Any, write_parquet: Any
) -> None:
    """Of the hub's columns and ours; an index counts only where every file has one."""
    for k, has_index in enumerate(indexed):
        images = [encode(pixels) for pixels in noise(20, 16, 16, seed=k)]
        given = images if column == "image" else [{"bytes": image, "path": "a.png"} for image in images]
        columns = {column: given, "label": [(k + row) % 10 for row in range(20)]}
        if has_index:
            columns["index"] = [1000 * (k + 1) + row for row in range(20)]
        write_parquet(tmp_path / "imagenet" / f"train-{k}-of-2.parquet", columns)
    loaded, by_stream, classes = in_memory_and_streamed(tmp_path)
    assert loaded == by_stream
    assert classes[0] == classes[1]
    numbers = [1000 * (k + 1) + row for k in range(2) for row in range(20)] if all(indexed) else list(range(40))
    assert sorted(loaded) == numbers
    assert [loaded[number] for number in numbers] == [(k + row) % 10 for k in range(2) for row in range(20)]
    assert np.unique(list(loaded.values())).size == 10
