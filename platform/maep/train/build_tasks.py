"""Build the task of a training phase from its configuration: model, data, classifiers, objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from maep import artifact, config, registry
from maep.artifact import Artifact
from maep.data.config import LoaderConfig
from maep.data.datasets import data_root
from maep.data.image_set import ImageSet, to_float
from maep.data.stream.loaders import Images, open_images, resolved, sample
from maep.errors import ArtifactError, ConfigError
from maep.models.build import build_model, load_weights
from maep.models.check import check_classifier
from maep.models.classifiers.load import Classifier, load_classifier
from maep.models.config import LoraConfig
from maep.models.lora import attach, num_trained
from maep.models.mae import MaskedAutoencoder
from maep.models.vitmae.folder import is_vitmae
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop.run import Task
from maep.train.objectives import Pretraining, Purification


def pretraining(settings: PretrainConfig) -> Task:
    """The task of MAE pretraining; its artifact is of kind `mae`."""
    loader, images = _open(settings)
    _check_size(images, settings.model.image_size)
    model = _build(config.to_dict(settings.model), settings.loop.seed)
    assert isinstance(model, MaskedAutoencoder)
    stored = _stored(settings, images)
    if settings.init is not None:
        start = _opened(settings.init)
        stored["train"]["init_sha256"] = start.sha256
        _start_from(model, config.to_dict(settings.model), start)
    card = _card("Masked autoencoder", f"pretrained on {settings.data.name}, mask ratio {settings.mask_ratio}")
    return Task("mae", Pretraining(model, settings.mask_ratio), images, settings.loop, stored, card, loader)


def purification(settings: FinetuneConfig) -> Task:
    """The task of fine-tuning a purifier; its artifact is of kind `purifier`.

    With `lora`, the weights from `init` are frozen (a whole purifier, or the autoencoder of a new one) and adapters are
    trained.
    """
    loader, images = _open(settings)
    values = config.to_dict(settings.model)
    model = _build(values, settings.loop.seed)
    _check_size(images, cast(tuple[int, int], model.image_size))
    stored = _stored(settings, images)
    stored["train"]["init_sha256"], adapted = None, ""
    if settings.init is not None:
        start = _opened(settings.init)
        stored["train"]["init_sha256"] = start.sha256
        trained = _start_from(model, values, start)
        if settings.lora is not None:
            adapted = _adapt(model, settings.lora, trained, settings.loop.seed)
    classifiers = _classifiers(settings, images)
    stored["train"]["classifiers"] = [classifier.name for classifier in classifiers]
    stored["train"]["classifiers_sha256"] = [classifier.sha256 for classifier in classifiers]
    attacked = ", ".join(stored["train"]["classifiers"])
    card = _card(
        registry.families.declared(settings.model.name).title,
        f"fine-tuned on {settings.data.name} with {settings.attacks.mode} attacks on {attacked}{adapted}",
    )
    return Task("purifier", Purification(model, [*classifiers], settings), images, settings.loop, stored, card, loader)


def _classifiers(settings: FinetuneConfig, images: Images) -> list[Classifier]:
    """The classifiers to attack. Raises ConfigError for one that breaks the interface or lacks a class of the data."""
    two, found = to_float(torch.from_numpy(sample(images, 2))), []
    last = int(images.labels.max()) if isinstance(images, ImageSet) else len(images.classes) - 1
    for spec in settings.classifiers:
        classifier = load_classifier(spec, data_root(settings.data))
        count = check_classifier(classifier, f"classifier {spec!r}", two)
        if last >= count:
            raise ConfigError(f"classifier {spec!r} has {count} classes, but the data has label {last}")
        found.append(classifier)
    return found


def _open(settings: PretrainConfig | FinetuneConfig) -> tuple[LoaderConfig, Images]:
    loader = resolved(settings.loader, settings.data, settings.workers.num_workers != 0)
    return loader, open_images(loader, settings.data)


def _build(values: dict[str, Any], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(values)


def _opened(init: str) -> Artifact:
    if is_vitmae(init):
        raise ArtifactError(f"init: {init} is a Hugging Face ViTMAE: convert it first, maep convert {init} -o DIR")
    return artifact.read(init)


def _start_from(model: nn.Module, values: Mapping[str, Any], start: Artifact) -> nn.Module:
    """Loads the weights of `start` into `model`, which is built from `values`, and returns the part that they fill.

    Raises ConfigError where that part has another shape than `start`, naming the first key that differs.
    """
    part, where = model, "model"
    if not isinstance(model, MaskedAutoencoder) and start.kind == "mae":
        if "mae" not in values:
            raise ConfigError(f"init: {values['name']} has no autoencoder that {start.folder} could start")
        part, values, where = model.get_submodule("mae"), values["mae"], "model.mae"
    wanted = "mae" if isinstance(part, MaskedAutoencoder) else "purifier"
    if start.kind != wanted:
        also = "" if wanted == "mae" else "a purifier or "
        raise ArtifactError(
            f"init: {start.folder} holds a {start.kind}, not {also}the autoencoder that maep pretrain writes"
        )
    theirs = config.flatten(start.config["model"])
    for key, value in config.flatten(values).items():
        if theirs.get(key) != value:
            kind = "autoencoder" if start.kind == "mae" else start.kind
            raise ConfigError(f"{where}.{key}: {value!r}, but the {kind} at {start.folder} has {theirs.get(key)!r}")
    load_weights(part, start)
    return part


def _adapt(model: nn.Module, adapters: LoraConfig, trained: nn.Module, seed: int) -> str:
    """Attaches adapters, initialised from `seed`; returns their description for the card."""
    count = sum(parameter.numel() for parameter in model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attach(model, adapters, trained)
    where = " and ".join(adapters.targets)
    return f", by LoRA of rank {adapters.rank} on the {where}: {num_trained(model):,} numbers trained beside {count:,}"


def _check_size(images: Images, size: tuple[int, int]) -> None:
    if images.image_shape != size:
        have = "x".join(map(str, images.image_shape))
        raise ConfigError(f"model image_size: {'x'.join(map(str, size))}, but {images.name} has {have} images")


def _stored(settings: PretrainConfig | FinetuneConfig, images: Images) -> dict[str, Any]:
    """The configuration stored in an artifact: every key that decides the weights, and no other."""
    values = config.deciding(settings)
    model = values.pop("model")
    values.pop("init", None)
    return {"model": model, "train": values, "data": {"name": images.name, "fingerprint": images.fingerprint}}


def _card(title: str, what: str) -> str:
    return (
        f"# {title}\n\nMade by maep: {what}. Images are RGB in [0, 1]. `config.json` holds every setting,"
        " `MANIFEST.json` the digests.\n"
    )
