"""Measure the calibration of suspicion scores: the distances of clean images."""

from __future__ import annotations

import numpy as np
import torch

from maep.artifact import Artifact
from maep.data import lists
from maep.data.datasets import load
from maep.errors import ConfigError
from maep_serve.config import ServeConfig
from maep_serve.engine.loading import Models, build_models
from maep_serve.engine.suspicion import Calibration, distance
from maep_serve.images import to_float, to_uint8

_MAX_IMAGES = 2000
_BATCH = 100


def measure(artifact: Artifact, config: ServeConfig) -> Calibration:
    """The calibration of a purifier and `config.classifier` on clean `dev` images of the data set (2,000 at most).

    Raises ConfigError without a classifier or a data set of the purifier's image size, and DataError without images.
    """
    models = build_models(artifact, config)
    data = models.data
    if models.classifier is None:
        raise ConfigError("classifier: a calibration needs one: add --classifier cifar10_resnet20")
    if data is None:
        raise ConfigError("data: the purifier does not name its data set: add --data.name cifar10")
    image_set = load(data, "dev")
    if image_set.image_shape != models.image_size:
        raise ConfigError(f"data: {data.name} has {image_set.image_shape} pixels, the purifier {models.image_size}")
    chosen = image_set.select(np.arange(min(len(image_set), _MAX_IMAGES)))
    listed = lists.make(f"{data.name}-dev[:{len(chosen)}]", data.name, "dev", tuple(map(int, chosen.indices)))
    pixels_NHWC = torch.from_numpy(np.ascontiguousarray(chosen.pixels(range(len(chosen)))))
    return calibrate(models, pixels_NHWC.permute(0, 3, 1, 2).contiguous(), listed.name, listed.sha256)


@torch.inference_mode()
def calibrate(models: Models, images: torch.Tensor, name: str, sha256: str) -> Calibration:
    """Measure `models` on clean `images`, uint8 [N, 3, H, W], which are identified by `name` and `sha256`."""
    assert models.classifier is not None
    found: dict[bool, list[float]] = {False: [], True: []}
    for batch in torch.split(images, _BATCH):
        purified = to_uint8(models.purifier(to_float(batch)))
        before, after = (models.classifier(to_float(pixels)).argmax(1) for pixels in (batch, purified))
        for row, changed in enumerate((before != after).tolist()):
            found[changed].append(distance(batch[row : row + 1], purified[row : row + 1]))
    unchanged, changed_distances = (tuple(sorted(found[changed])) for changed in (False, True))
    return Calibration(
        purifier_sha256=models.purifier_sha256,
        classifier_sha256=str(models.classifier.sha256),
        images=name,
        images_sha256=sha256,
        image_size=models.image_size,
        unchanged=unchanged,
        changed=changed_distances,
    )
