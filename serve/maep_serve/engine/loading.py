"""Build the models of an endpoint from a verified artifact, and run them once before they serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from maep import registry
from maep.artifact import Artifact
from maep.data.config import DataConfig
from maep.data.datasets import data_root
from maep.data.sets import cifar10, digits
from maep.errors import ArtifactError, ConfigError
from maep.models.build import load_purifier_artifact
from maep.models.classifiers.load import load_classifier
from maep_serve.config import ServeConfig
from maep_serve.engine import suspicion
from maep_serve.engine.suspicion import Calibration
from maep_serve.images import SMALL


@dataclass(frozen=True)
class Models:
    """The models of one replica; both modules are frozen, in eval mode and on the CPU.

    purifier_sha256: the artifact's identity, as in evaluation results and the registry.
    image_size: the height and width the purifier was trained on. stride: both sides must be multiples of it.
    classes: names by class index; empty without a classifier.
    calibration: of the suspicion score, for exactly these two models; None if it was not measured.
    data: the configured data set, else the one the purifier was trained on; None if maep does not know it.
    """

    purifier: nn.Module
    purifier_sha256: str
    image_size: tuple[int, int]
    stride: int
    classifier: nn.Module | None = None
    classifier_name: str | None = None
    classes: tuple[str, ...] = ()
    calibration: Calibration | None = None
    data: DataConfig | None = None

    @property
    def version(self) -> str:
        """The purifier's sha256, shortened to 12 digits, as in metrics and `/v2`."""
        return self.purifier_sha256[:12]

    @property
    def most_classified_pixels(self) -> int:
        """Maximum pixels of an image to classify; the classifier gets the whole image, not tiles.

        256 x 256, or twice the training size in both directions if that is more.
        """
        height, width = self.image_size
        return max(SMALL, 4 * height * width)


def build_models(artifact: Artifact, config: ServeConfig) -> Models:
    """The models of a verified purifier `artifact` and of `config.classifier`, both run once on a grey image.

    Raises UserError if the purifier, the classifier, its weights or the calibration cannot be used.
    """
    purifier = load_purifier_artifact(artifact)
    height, width = cast(tuple[int, int], purifier.image_size)
    size, stride = (height, width), cast(int, purifier.stride)
    trained_on = str(artifact.config.get("data", {}).get("name"))
    known = trained_on in registry.datasets.names()
    data = config.data or (DataConfig(name=trained_on) if known else None)
    if config.classifier is None:
        models = Models(purifier, artifact.sha256, size, stride, data=data)
        warm(models, 1)
        return models
    classifier = load_classifier(config.classifier, data_root(data or DataConfig()))
    with torch.inference_mode():
        try:
            num_classes = classifier(_grey(size, 1)).shape[1]
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"classifier: {classifier.name} does not support the purifier's {width} x {height} pixels: {reason}"
            ) from None
    classes = class_names(getattr(classifier, "classes", ()), data.name if data else None, num_classes)
    calibration = suspicion.find(artifact.sha256, classifier.sha256, config.calibration)
    models = Models(purifier, artifact.sha256, size, stride, classifier, classifier.name, classes, calibration, data)
    warm(models, 1)
    return models


def warm(models: Models, batch_size: int) -> None:
    """Run a grey batch through both models. Raises ArtifactError if pixels or logits are not finite."""
    grey = _grey(models.image_size, batch_size)
    with torch.inference_mode():
        purified = models.purifier(grey)
        if purified.shape != grey.shape or not torch.isfinite(purified).all():
            raise ArtifactError(f"purifier {models.version}: its output for a grey image is not finite: train it again")
        if models.classifier is not None and not torch.isfinite(models.classifier(purified)).all():
            raise ArtifactError(f"classifier {models.classifier_name}: its logits for a grey image are not finite")


def class_names(own: tuple[str, ...], data_name: str | None, num_classes: int) -> tuple[str, ...]:
    """Class names by index: the classifier's `own`, else the data set's if their number matches, else the indices."""
    known = {"digits": digits.CLASSES, "cifar10": cifar10.CLASSES}
    for names in (tuple(own), known.get(data_name or "", ())):
        if len(names) == num_classes:
            return names
    return tuple(str(index) for index in range(num_classes))


def _grey(image_size: tuple[int, int], batch_size: int) -> torch.Tensor:
    return torch.full((batch_size, 3, *image_size), 0.5)
