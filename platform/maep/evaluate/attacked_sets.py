"""Attacked images: made once for each (model, attack, seed, image list), kept on disk, verified at use.

The model is the bare classifier (threat model `oblivious`: they do not depend on any purifier) or another purifier
before a classifier (`transfer`). The attack takes its full budget without an early stop and keeps the iterate of
highest loss. They are kept as 8-bit images, as they would arrive, within the budget.
A set is a folder of shards and, written last, a manifest; a folder without a valid manifest does not exist. What a
shard took to make stands beside it, outside the manifest: it differs from one making to the next, the images do not.
"""

from __future__ import annotations

import functools
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
from torch import nn

from maep import storage
from maep.attacks.config import AttackConfig
from maep.data import lists
from maep.data.image_set import ImageSet, to_uint8
from maep.data.lists import ImageList
from maep.errors import DataError
from maep.evaluate.measure import Batch, attack_images, round_to_budget
from maep.models.classifiers.load import Classifier

SCHEMA = 2
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


@dataclass(frozen=True)
class AttackedSet:
    """The images of `images` (picked by `image_list`), attacked on one model; kept below `cache`.

    `purifier_sha256` is of the purifier through which they were attacked, None for the bare classifier.
    """

    classifier_sha256: str
    purifier_sha256: str | None
    images: ImageSet
    image_list: ImageList
    config: AttackConfig
    seed: int
    cache: Path

    @functools.cached_property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides the pixels of a set: equal recipes, equal sets."""
        return {
            "schema": SCHEMA,
            "classifier_sha256": self.classifier_sha256,
            "purifier_sha256": self.purifier_sha256,
            "image_list": self.image_list.name,
            "image_list_sha256": self.image_list.sha256,
            "images_sha256": self.images.fingerprint,
            "num_images": len(self.images),
            "attack": self.config.identity,
            "seed": self.seed,
        }

    @functools.cached_property
    def folder(self) -> Path:
        """Where it is kept."""
        digest = storage.sha256(json.dumps(self.recipe, sort_keys=True).encode())
        return self.cache / f"{self.config.name}-{digest[:24]}"

    @property
    def num_shards(self) -> int:
        """A set is made SHARD images at a time, whoever makes it, so that batching cannot change it."""
        return -(-len(self.images) // SHARD)

    def make(self, model: nn.Module, shard: int) -> dict[Path, bytes]:
        """The files of one shard, to be written in this order: what it took, and the attacked images."""
        positions = np.arange(shard * SHARD, min((shard + 1) * SHARD, len(self.images)))
        images, labels = self.images.batch(positions)
        images = images.contiguous(memory_format=torch.channels_last)
        batch = Batch(images, labels, torch.from_numpy(self.images.indices[positions]))
        meter = Meter()
        with meter.on(model):
            attacked = attack_images(model, batch, self.config, self.seed)
        pixels = to_uint8(round_to_budget(attacked, images, self.config.eps))
        cost = json.dumps(asdict(meter)).encode()
        return {self.folder / _cost_name(shard): cost, self.shard_path(shard): save({"images": pixels})}

    def shard_path(self, shard: int) -> Path:
        """Where the images of a shard are kept; a shard that is there is done."""
        return self.folder / _shard_name(shard)

    def finish(self) -> None:
        """Writes the manifest once every shard is there."""
        files = {path.name: storage.sha256_file(path) for path in map(self.shard_path, range(self.num_shards))}
        text = json.dumps({**self.recipe, "files": files}, indent=2) + "\n"
        storage.write_bytes(self.folder / MANIFEST, text.encode())

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is there; `read` verifies the rest."""
        return (self.folder / MANIFEST).is_file()

    def read(self) -> NDArray[np.uint8]:
        """uint8 [N, H, W, 3]: the attacked images, in the order of the image list.

        Raises DataError where the set is not complete, not of this recipe, or was changed after it was written.
        """
        cure = f"delete {self.folder} and they are made again"
        try:
            manifest = json.loads((self.folder / MANIFEST).read_bytes())
            files = dict(manifest.pop("files"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{self.folder} holds no complete set of attacked images: {cure}") from None
        if manifest != self.recipe or sorted(files) != sorted(map(_shard_name, range(self.num_shards))):
            raise DataError(f"{self.folder / MANIFEST} is of another set of attacked images than its name says: {cure}")
        return np.concatenate([_read_shard(self.shard_path(s), files, cure) for s in range(self.num_shards)])

    def cost(self) -> Meter | None:
        """What the set took when it was made, all shards; None where that was not kept (older sets)."""
        total = Meter()
        try:
            for name in map(_cost_name, range(self.num_shards)):
                shard = json.loads((self.folder / name).read_bytes())
                total.forward_passes += int(shard["forward_passes"])
                total.seconds += float(shard["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return total

    def made(self, model: nn.Module) -> NDArray[np.uint8]:
        """uint8 [N, H, W, 3]: the attacked images, made now on `model` or read back."""
        if not self.is_finished:
            for shard in range(self.num_shards):
                if not self.shard_path(shard).is_file():
                    for path, data in self.make(model, shard).items():
                        storage.write_bytes(path, data)
            self.finish()
        return self.read()


def dev_images(classifier: Classifier, images: ImageSet, config: AttackConfig, seed: int) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3]: `images` of split `dev`, attacked on the bare classifier; made once and kept."""
    chosen = lists.make(f"{images.name}-dev[:{len(images)}]", images.name, "dev", tuple(images.indices.tolist()))
    return AttackedSet(classifier.sha256, None, images, chosen, config, seed, cache_folder()).made(classifier)


def _shard_name(shard: int) -> str:
    return f"images-{shard:05d}.safetensors"


def _cost_name(shard: int) -> str:
    return f"cost-{shard:05d}.json"


def _read_shard(path: Path, files: Mapping[str, str], cure: str) -> NDArray[np.uint8]:
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
