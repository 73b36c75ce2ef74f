"""Attacked images: made once for each (classifier, attack, seed, image list), kept on disk, verified at use.

They do not depend on any purifier: the attack sees the bare classifier, takes its full budget without an early stop
and keeps the iterate of highest loss. They are kept as 8-bit images, as they would arrive, within the budget.
A set is a folder of shards and, written last, a manifest; a folder without a valid manifest does not exist. What a
shard took to make stands beside it, outside the manifest: it differs from one making to the next, the images do not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from maep import seeding, storage
from maep.attacks.config import AttackConfig
from maep.attacks.gradient import attack
from maep.data.image_set import ImageSet, to_float
from maep.data.lists import ImageList
from maep.errors import DataError

SCHEMA = 1
SHARD = 100
MANIFEST = "MANIFEST.json"


@dataclass
class Meter:
    """What the blocks under `on` took: images that went forward through a model, and seconds of this thread."""

    forward_passes: int = 0
    seconds: float = 0.0

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Counts while the block runs; `model` takes a batch as its first argument."""

        def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.forward_passes += len(inputs[0])

        handle, start = model.register_forward_pre_hook(count), time.thread_time()
        try:
            yield
        finally:
            self.seconds += time.thread_time() - start
            handle.remove()


def cache_folder(named: str | None = None) -> Path:
    """Where attacked images are kept: `named`, else $MAEP_CACHE, else ~/.cache/maep."""
    return Path(named or os.environ.get("MAEP_CACHE") or "~/.cache/maep").expanduser() / "adversarial"


def recipe(
    classifier_sha256: str, image_set: ImageSet, image_list: ImageList, config: AttackConfig, seed: int
) -> dict[str, Any]:
    """Everything that decides the pixels of a set: equal recipes, equal sets."""
    return {
        "schema": SCHEMA,
        "classifier_sha256": classifier_sha256,
        "image_list": image_list.name,
        "image_list_sha256": image_list.sha256,
        "images_sha256": image_set.fingerprint,
        "num_images": len(image_set),
        "attack": asdict(config),
        "seed": seed,
    }


def set_folder(cache: Path, wanted: Mapping[str, Any]) -> Path:
    """The folder of the set with this recipe."""
    digest = storage.sha256(json.dumps(wanted, sort_keys=True).encode())
    return cache / f"{wanted['attack']['name']}-{digest[:24]}"


def num_shards(wanted: Mapping[str, Any]) -> int:
    """A set is made SHARD images at a time, whoever makes it, so that batching cannot change it."""
    return -(-int(wanted["num_images"]) // SHARD)


def make_shard(
    folder: Path, classifier: nn.Module, image_set: ImageSet, config: AttackConfig, seed: int, s: int
) -> None:
    """Attacks the images of shard `s` and keeps them and, first, what that took; a shard that is there stays."""
    path = folder / _shard_name(s)
    if path.is_file():
        return
    positions = np.arange(s * SHARD, min((s + 1) * SHARD, len(image_set)))
    images, labels = image_set.batch(positions)
    images = images.contiguous(memory_format=torch.channels_last)
    keys = attack_keys(config, seed, torch.from_numpy(image_set.indices[positions]))
    meter = Meter()
    with meter.on(classifier):
        attacked = attack(classifier, images, labels, config, keys)
    pixels = round_to_budget(attacked, images, config.eps)
    storage.write_bytes(folder / _cost_name(s), json.dumps(asdict(meter)).encode())
    storage.write_bytes(path, save({"images": pixels}))


def finish(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Writes the manifest once every shard is there."""
    files = {name: storage.sha256_file(folder / name) for name in map(_shard_name, range(num_shards(wanted)))}
    text = json.dumps({**wanted, "files": files}, indent=2) + "\n"
    storage.write_bytes(folder / MANIFEST, text.encode())


def is_finished(folder: Path) -> bool:
    """Whether the manifest of a set is there; `read` verifies the rest."""
    return (folder / MANIFEST).is_file()


def read(folder: Path, wanted: Mapping[str, Any]) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3]: the attacked images, in the order of the image list.

    Raises DataError where the set is not complete, not of this recipe, or was changed after it was written.
    """
    cure = f"delete {folder} and they are made again"
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = dict(manifest.pop("files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder} holds no complete set of attacked images: {cure}") from None
    if manifest != dict(wanted) or sorted(files) != sorted(map(_shard_name, range(num_shards(wanted)))):
        raise DataError(f"{folder / MANIFEST} is of another set of attacked images than its name says: {cure}")
    return np.concatenate([_read_shard(folder, s, files, cure) for s in range(num_shards(wanted))])


def cost(folder: Path, wanted: Mapping[str, Any]) -> Meter | None:
    """What the set took when it was made, all shards; None where that was not kept (older sets)."""
    total = Meter()
    try:
        for name in map(_cost_name, range(num_shards(wanted))):
            shard = json.loads((folder / name).read_bytes())
            total.forward_passes += int(shard["forward_passes"])
            total.seconds += float(shard["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return total


def attacked_images(
    classifier: nn.Module,
    classifier_sha256: str,
    image_set: ImageSet,
    image_list: ImageList,
    config: AttackConfig,
    seed: int = 0,
    cache: str | None = None,
) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3]: the attacked images of `image_set` (picked by `image_list`), made now or read back."""
    wanted = recipe(classifier_sha256, image_set, image_list, config, seed)
    folder = set_folder(cache_folder(cache), wanted)
    if not is_finished(folder):
        for shard in range(num_shards(wanted)):
            make_shard(folder, classifier, image_set, config, seed, shard)
        finish(folder, wanted)
    return read(folder, wanted)


def attack_keys(config: AttackConfig, seed: int, indices: Tensor) -> Tensor:
    """int64 [B]: what decides the random start of each image, by its official index (int64 [B])."""
    salt = int(storage.sha256(config.name.encode())[:12], 16)
    return seeding.mix(seed, salt, indices)


def round_to_budget(attacked: Tensor, images: Tensor, eps: float) -> Tensor:
    """uint8 [B, H, W, 3]: float [B, 3, H, W] `attacked` in 8 bits, no level further than `eps` from `images`.

    `images` lie on the 8-bit grid; where eps does not, the last part of a level is given up.
    """
    levels = int(eps * 255 + 1e-4)
    original = images.mul(255).round()
    change = (attacked.mul(255).round() - original).clamp(-levels, levels)
    rounded = (original + change).clamp(0, 255).to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).contiguous()


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [0, 1]."""
    return to_float(torch.from_numpy(pixels))


def _shard_name(shard: int) -> str:
    return f"images-{shard:05d}.safetensors"


def _cost_name(shard: int) -> str:
    return f"cost-{shard:05d}.json"


def _read_shard(folder: Path, shard: int, files: Mapping[str, str], cure: str) -> NDArray[np.uint8]:
    path = folder / _shard_name(shard)
    try:
        data = path.read_bytes()
    except OSError:
        raise DataError(f"{path} is missing: {cure}") from None
    if storage.sha256(data) != files[path.name]:
        raise DataError(f"{path} does not match its manifest: it was changed after it was written: {cure}")
    try:
        pixels: NDArray[np.uint8] = load(data)["images"].numpy()
    except (SafetensorError, KeyError):
        raise DataError(f"{path} holds no images: {cure}") from None
    return pixels
