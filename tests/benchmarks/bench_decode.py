"""JPEG bytes to augmented uint8 224x224 on one thread: ours over torchvision's tensors and over the PIL transform.

Photographs of the size and weight of ImageNet's (500x375, quality 92), made of the slice's with some grain, for an
enlarged one would be too easily decoded. All three draw their own boxes from the same distribution, one for each image,
in one process, in turns; processor time counts, the least of some rounds for each image.
"""

from __future__ import annotations

import importlib.util
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from figures import held
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode, v2

from maep.data.reading.cropping import decode_crop
from maep.data.reading.decoding import decode
from maep.data.stream.augmentation import SCALE, crop_box

NUM, ROUNDS = 128, 6
GRAIN = 6.0  # grey levels: it makes about 80 kB of each


def photographs(shared_data: Path) -> list[bytes]:
    rows = pq.read_table(shared_data / "imagenet_slice" / "val_256.parquet", columns=["image"])["image"][:NUM]
    generator = np.random.default_rng(0)
    made = []
    for row in rows:
        pixels = np.asarray(decode(row.as_py()).resize((500, 375), Image.Resampling.BICUBIC))
        grainy = (pixels + generator.normal(0, GRAIN, (375, 500, 1))).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(grainy).save(buffer, "JPEG", quality=92)
        made.append(buffer.getvalue())
    return made


@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
@pytest.mark.shared_data
def test_a_crop_takes_less_than_torchvisions(shared_data: Path) -> None:
    """Both decode the whole image by libjpeg-turbo, which is two thirds of our time: docs/experiments.md."""
    images = photographs(shared_data)
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=SCALE, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    ways: dict[str, Callable[[int], object]] = {
        "ours": lambda k: decode_crop(images[k], 224, lambda size: crop_box(k, 0, 0, size)),
        "torchvision": lambda k: augment(
            decode_jpeg(torch.frombuffer(bytearray(images[k]), dtype=torch.uint8), ImageReadMode.RGB)
        ),
        "PIL": lambda k: np.asarray(augment(Image.open(io.BytesIO(images[k])).convert("RGB"))),
    }
    taken = {name: np.full(NUM, np.inf) for name in ways}
    names = list(ways)
    for turn in range(ROUNDS):
        for k in range(NUM):
            for name in (names[(turn + j) % len(names)] for j in range(len(names))):  # the first meets colder caches
                torch.manual_seed(k)  # the same box in each round: the least of several boxes would be the easiest one
                before = time.thread_time()
                ways[name](k)
                taken[name][k] = min(taken[name][k], time.thread_time() - before)
    over = {name: taken[name].sum() / taken["ours"].sum() for name in ("torchvision", "PIL")}
    decoder = "simplejpeg" if importlib.util.find_spec("simplejpeg") else "Pillow"
    print(
        f"\na 224 px crop of a JPEG of {sum(map(len, images)) / NUM / 1e3:.0f} kB, decoded by {decoder}: "
        + ", ".join(f"{ratio:.2f} times as fast as {name}" for name, ratio in over.items())
    )
    assert over["PIL"] > 1
    if decoder == "simplejpeg":
        held("the rate over torchvision's", over["torchvision"], asked=1.2, floor=1.0)
