"""Train a classifier to protect: a CIFAR ResNet or a thin VGG on digits or CIFAR-10."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from maep import config
from maep.artifact import Artifact
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.data.stream.loaders import open_images, resolved, sample
from maep.errors import ArtifactError
from maep.evaluate.measure import DefendedModel, measure_set
from maep.models.classifiers import architectures
from maep.models.classifiers.load import load_classifier
from maep.train.batch import Batch
from maep.train.config import ClassifierConfig
from maep.train.loop.run import Task
from maep.train.objectives import Losses, Objective


class Classification(Objective):
    """Cross-entropy of a classifier on normalised images."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, batch: Batch) -> Losses:
        """The loss and accuracy of one batch."""
        logits = self.model((batch.images - self.mean) / self.std)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        right = (logits.argmax(dim=1) == batch.labels).float().mean()
        return Losses(loss, {"train_accuracy": right.detach()})


def classification(settings: ClassifierConfig) -> Task:
    """The task of training a classifier; its artifact, of kind `classifier`, can be passed to `load_classifier`."""
    loader = resolved(settings.loader, settings.data, settings.workers.num_workers != 0)
    images = open_images(loader, settings.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.loop.seed)
        shape = {
            "family": settings.family,
            "depth": settings.depth,
            "num_classes": len(images.classes),
            "width": settings.width,
        }
        model = architectures.build(shape)
    pixels = sample(images, 10_000).reshape(-1, 3) / 255.0
    mean, std = (tuple(round(float(v), 4) for v in values) for values in (pixels.mean(axis=0), pixels.std(axis=0)))
    stored = {
        "name": settings.name,
        "model": shape,
        "mean": list(mean),
        "std": list(std),
        "classes": list(images.classes),
        "label_smoothing": settings.label_smoothing,
        "loop": config.deciding(settings.loop),
        "data": {"name": images.name, "fingerprint": images.fingerprint},
    }
    title = {"resnet": "CIFAR ResNet", "vgg": "thin VGG"}[settings.family]
    card = f"# {settings.name}\n\nA {title}-{settings.depth}, trained by maep on {images.name}.\n"
    objective = Classification(model, mean, std, settings.label_smoothing)
    return Task("classifier", objective, images, settings.loop, stored, card, loader)


def dev_accuracy(trained: Artifact, data: DataConfig) -> float:
    """Accuracy of the trained classifier on `dev`. Raises ArtifactError for another kind of artifact."""
    if trained.kind != "classifier":
        raise ArtifactError(f"{trained.folder} holds a {trained.kind}, not a classifier")
    return float(measure_set(DefendedModel(load_classifier(str(trained.folder))), load(data, "dev")).mean())
