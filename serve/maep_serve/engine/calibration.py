"""Measuring the clean images that suspicion scores are held against."""

from __future__ import annotations

import numpy as np
import torch

from maep.artifact import Artifact
from maep.data import lists
from maep.data.datasets import load
from maep.errors import ConfigError
from maep_serve.config import ServeConfig
from maep_serve.engine.loading import build_models, image_data
from maep_serve.engine.suspicion import Calibration, calibrate

_MAX_IMAGES = 2000


def measure(artifact: Artifact, config: ServeConfig) -> Calibration:
    """The calibration of a purifier and `config.classifier` on clean `dev` images of the data set (2,000 at most).

    Raises ConfigError without a classifier or a data set of the purifier's image size, DataError without its images.
    """
    models = build_models(artifact, config)
    data = image_data(config, models.image_size)
    if models.classifier is None:
        raise ConfigError("classifier: a suspicion score needs one: --classifier cifar10_resnet20")
    if data is None:
        raise ConfigError(f"data: no data set is known for {models.image_size} pixels: --data.name cifar10")
    image_set = load(data, "dev")
    if image_set.image_shape != models.image_size:
        raise ConfigError(f"data: {data.name} has {image_set.image_shape} pixels, the purifier {models.image_size}")
    positions = np.arange(min(len(image_set), _MAX_IMAGES))
    chosen = image_set.select(positions)
    listed = lists.make(f"{data.name}-dev[:{len(chosen)}]", data.name, "dev", tuple(map(int, chosen.indices)))
    pixels_NHWC = torch.from_numpy(np.ascontiguousarray(chosen.pixels(range(len(chosen)))))
    names = {
        "purifier_sha256": artifact.sha256,
        "classifier_sha256": models.classifier.sha256,
        "images": listed.name,
        "images_sha256": listed.sha256,
        "image_size": models.image_size,
    }
    return calibrate(models.purifier, models.classifier, pixels_NHWC.permute(0, 3, 1, 2).contiguous(), names)
