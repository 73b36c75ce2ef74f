"""Sets of attacked images: made once per (model, attack, seed, image list), kept on disk, verified on use.

The model is the bare classifier (threat model `oblivious`, so the images do not depend on any purifier) or another
purifier before a classifier (`transfer`). The attack uses its full budget without an early stop and keeps the iterate
of highest loss. Images are stored in 8 bits, within the budget.

A set is a folder of shards and a manifest, written last; without a valid manifest it does not exist. The cost of each
shard is a file beside it that is not in the manifest, because it differs from run to run.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
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
from maep.errors import ConfigError, DataError
from maep.evaluate.cost import Cost, CostMeter
from maep.evaluate.measure import ImageBatch, attack_images, rounds
from maep.models.classifiers.load import Classifier

SCHEMA = 3
SHARD = 100
"""Images of a shard, whoever makes it: the batches of an attack must not depend on the machine."""
MANIFEST = "MANIFEST.json"


def cache_folder(named: str | None = None) -> Path:
    """The folder of all sets: `named`, else $MAEP_CACHE, else ~/.cache/maep."""
    return Path(named or os.environ.get("MAEP_CACHE") or "~/.cache/maep").expanduser() / "adversarial"


@dataclass(frozen=True)
class AttackedSet:
    """The images of `images` (selected by `image_list`), attacked on one model and kept below `cache`.

    `purifier_sha256` identifies the purifier of the attacked model; None: the bare classifier.
    """

    classifier_sha256: str
    purifier_sha256: str | None
    images: ImageSet
    image_list: ImageList
    config: AttackConfig
    seed: int
    cache: Path
    surrogate: int | None = None
    """Which surrogate of the purifier is attacked; None: the purifier before the classifier."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a budget that 8-bit images cannot use, or that rounding may exceed."""
        if self.config.eps and not rounds(self.config):
            raise ConfigError(
                f"eps: {self.config.eps * 255:g}/255 in {self.config.norm}: attacked images are kept in 8 bits, so the"
                " norm must be Linf and the budget at least 1/255"
            )

    @functools.cached_property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides the pixels of the set."""
        surrogate = {} if self.surrogate is None else {"surrogate": self.surrogate}
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
            **surrogate,
        }

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of the set, named by a digest of its recipe."""
        digest = storage.sha256(json.dumps(self.recipe, sort_keys=True).encode())
        return self.cache / f"{self.config.name}-{digest[:24]}"

    @property
    def num_shards(self) -> int:
        """How many shards the set has."""
        return -(-len(self.images) // SHARD)

    def make(self, model: nn.Module, shard: int) -> dict[Path, bytes]:
        """The files of one shard, to be written in this order: its cost, then its images."""
        positions = np.arange(shard * SHARD, min((shard + 1) * SHARD, len(self.images)))
        images, labels = self.images.batch(positions)
        images = images.contiguous(memory_format=torch.channels_last)
        batch = ImageBatch(images, labels, torch.from_numpy(self.images.indices[positions]))
        meter = CostMeter()
        with meter.on(model):
            attacked = attack_images(model, batch, self.config, self.seed)
        pixels = to_uint8(attacked)
        cost = json.dumps(asdict(meter.cost)).encode()
        return {self._cost_path(shard): cost, self.shard_path(shard): save({"images": pixels})}

    def shard_path(self, shard: int) -> Path:
        """The file of a shard's images; a shard whose file exists is complete."""
        return self.folder / f"images-{shard:05d}.safetensors"

    def _cost_path(self, shard: int) -> Path:
        return self.folder / f"cost-{shard:05d}.json"

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

        Raises DataError where the set is incomplete, is another set than its name says, or was changed after it was
        written.
        """
        cure = f"delete {self.folder} to make it again"
        try:
            manifest = json.loads((self.folder / MANIFEST).read_bytes())
            files = dict(manifest.pop("files"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{self.folder} holds no complete set of attacked images: {cure}") from None
        shards = [self.shard_path(shard) for shard in range(self.num_shards)]
        if manifest != self.recipe or sorted(files) != [path.name for path in shards]:
            raise DataError(f"{self.folder / MANIFEST} describes another set than the folder's name: {cure}")
        return np.concatenate([_read_shard(path, files, cure) for path in shards])

    def cost(self) -> Cost | None:
        """The cost of making the set; None where a shard's cost was not kept (sets of earlier versions)."""
        paths = map(self._cost_path, range(self.num_shards))
        try:
            return sum((Cost(**json.loads(path.read_bytes())) for path in paths), Cost())
        except (OSError, ValueError, TypeError):
            return None

    def made(self, model: nn.Module) -> NDArray[np.uint8]:
        """uint8 [N, H, W, 3]: the attacked images, read or, where the set is incomplete, made on `model`."""
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
