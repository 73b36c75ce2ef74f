"""Load protected classifiers: frozen modules from images in [0, 1] to logits, with their normalisation inside.

A spec names a classifier:
`cifar10_resnet20|44|56` and `imagenet_squeezenet1_0` (weights under `<data root>/weights`), `timm:NAME`,
`torchvision:NAME`, `import:package.module:factory` (any function or class that returns an `nn.Module`),
or a folder that `maep classifier train` wrote.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maep import artifact
from maep.errors import ArtifactError, ConfigError, DataError, UnavailableError, nearest
from maep.models.build import load_weights
from maep.models.classifiers import architectures
from maep.models.classifiers.architectures import CifarResNet, fold

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """float [B, 3, H, W] in [0, 1] -> logits [B, classes].

    `name` and `sha256` identify it in results; `classes` names its classes, and is empty if they have no names.
    `sha256` covers everything that decides the logits, as it was before batch norms were folded: the weights, the
    normalisation, the structure and, for a user's own model, the source `code`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        name: str,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
        classes: tuple[str, ...] = (),
        code: str = "",
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.classes = classes
        parts = [weights_sha256(model), [float(v) for v in mean], [float(v) for v in std], structure(model), code]
        self.sha256 = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits


def weights_sha256(model: nn.Module) -> str:
    """Digest over the names and values of a model's state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def structure(model: nn.Module) -> str:
    """The model as torch prints it, without object addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))


def load_classifier(spec: str, root: str | Path = "data") -> Classifier:
    """The classifier that `spec` names (see the module), in eval mode, frozen, batch norms folded.

    `root` is the data root; its folder `weights` holds the weights of named classifiers.
    Raises ConfigError for an unknown name, DataError for missing weights or those of another model, ArtifactError for
    a folder without a classifier, UnavailableError for weights that cannot be downloaded.
    """
    scheme, colon, rest = spec.partition(":")
    if spec in _NAMED:
        classifier = _named(spec, Path(root))
    elif colon and scheme in _SCHEMES:
        classifier = _SCHEMES[scheme](rest)
    elif Path(spec).is_dir():
        classifier = _from_artifact(artifact.read(spec))
    else:
        known = [*_NAMED, "timm:NAME", "torchvision:NAME", "import:package.module:factory"]
        raise ConfigError(f"classifier {spec!r} is neither known nor a folder: {nearest(spec, known)}")
    return fold_batch_norm(classifier.eval()).eval().requires_grad_(False)  # folding adds new modules


def fold_batch_norm(classifier: Classifier) -> Classifier:
    """Folds the batch norms of a frozen classifier of maep's own families."""
    fold(classifier.model)
    return classifier


def _squeezenet() -> Any:
    from torchvision.models import squeezenet1_0

    model = squeezenet1_0(weights=None)
    model.classifier[1].padding = (1, 1)  # as in the Caffe model that these weights come from
    return model


def _cifar10_classes() -> tuple[str, ...]:
    from maep.data.sets.cifar10 import CLASSES

    return CLASSES


def _imagenet_classes() -> tuple[str, ...]:
    from torchvision.models import SqueezeNet1_0_Weights

    return tuple(SqueezeNet1_0_Weights.DEFAULT.meta["categories"])


_NAMED: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], tuple[str, ...]]]] = {
    "cifar10_resnet20": ("cifar10_resnet20.safetensors", lambda: CifarResNet(20), _cifar10_classes),
    "cifar10_resnet44": ("cifar10_resnet44.safetensors", lambda: CifarResNet(44), _cifar10_classes),
    "cifar10_resnet56": ("cifar10_resnet56.safetensors", lambda: CifarResNet(56), _cifar10_classes),
    "imagenet_squeezenet1_0": ("imagenet_squeezenet1_0_dc.safetensors", _squeezenet, _imagenet_classes),
}


def weights_file(spec: str, root: Path) -> Path | None:
    """Path of the weights of a named classifier below the data root; None for any other spec."""
    return root / "weights" / _NAMED[spec][0] if spec in _NAMED else None


def _named(name: str, root: Path) -> Classifier:
    _, factory, classes = _NAMED[name]
    path = weights_file(name, root)
    assert path is not None
    if not path.is_file():
        raise DataError(
            f"classifier {name!r} needs its weights at {path}: set $MAEP_DATA to the folder that holds weights/,"
            " or train one with maep classifier train"
        )
    model = factory()
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except Exception as error:  # safetensors has no one error class for damaged files
        raise DataError(f"{path} does not hold the weights of {name}: {_one_line(error)}: fetch it again") from None
    lacking = [key for key in missing if not key.endswith("num_batches_tracked")]
    if lacking or unexpected:
        what = f"lacks {lacking[0]!r} of" if lacking else f"holds {unexpected[0]!r}, which is not part of"
        raise DataError(f"{path} {what} {name}: it holds another model's weights, fetch it again")
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        raise DataError(f"{path} holds NaN or infinity: it is damaged, fetch it again")
    return Classifier(model, name, IMAGENET_MEAN, IMAGENET_STD, classes())


def _timm(name: str) -> Classifier:
    import timm

    if not timm.is_model(name):  # a tag after the dot selects one of several sets of weights
        raise ConfigError(f"classifier 'timm:{name}' is not known: {nearest(name, timm.list_models())}")
    if "." in name and name not in (tagged := timm.list_pretrained(f"{name.partition('.')[0]}.*")):
        raise ConfigError(f"classifier 'timm:{name}' has no such weights: {nearest(name, tagged)}")
    if not timm.is_model_pretrained(name):
        raise ConfigError(f"classifier 'timm:{name}' has no trained weights: choose one of timm.list_pretrained()")
    model = _downloaded(f"timm:{name}", lambda: timm.create_model(name, pretrained=True))
    settings = timm.data.resolve_model_data_config(model)
    return Classifier(model, f"timm:{name}", settings["mean"], settings["std"], code=f"timm:{name}")


def _torchvision(name: str) -> Classifier:
    from torchvision import models

    options = models.list_models(module=models)  # classifiers only: no detectors, segmenters or video models
    if name not in options:
        raise ConfigError(f"classifier 'torchvision:{name}' is not known: {nearest(name, options)}")
    weights = models.get_model_weights(name).DEFAULT
    model = _downloaded(f"torchvision:{name}", lambda: models.get_model(name, weights=weights))
    settings = weights.transforms()
    categories = tuple(weights.meta["categories"])
    spec = f"torchvision:{name}"
    return Classifier(model, spec, tuple(settings.mean), tuple(settings.std), categories, code=spec)


def _downloaded(name: str, create: Callable[[], nn.Module]) -> nn.Module:
    try:
        return create()
    except OSError as error:  # the common base of errors from urllib, requests and huggingface_hub
        raise UnavailableError(
            f"classifier {name!r}: its weights cannot be downloaded ({_one_line(error)}): connect to the network once,"
            " copy the cache from a connected machine, or use import:package.module:factory with your own weights"
        ) from None


def _imported(path: str) -> Classifier:
    module, colon, factory = path.partition(":")
    if not colon or not module or not factory:
        raise ConfigError(f"classifier 'import:{path}' is incomplete: write import:package.module:factory")
    where = f"classifier 'import:{path}'"
    try:
        found = importlib.import_module(module)
    except Exception as error:  # anything may fail in the user's code
        reason = _one_line(error)
        raise ConfigError(f"{where}: {module} cannot be imported ({reason}): install it or set PYTHONPATH") from None
    if not hasattr(found, factory):
        raise ConfigError(f"{where}: {module} has no {factory!r}: {nearest(factory, _public(found))}")
    made = getattr(found, factory)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ConfigError(
                f"{where}: {factory} is of type {type(made).__name__}: name a function that returns a model"
            )
        try:
            made = made()
        except Exception as error:
            raise ConfigError(
                f"{where}: calling {factory}() failed: {type(error).__name__}: {_one_line(error)}"
            ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{where}: {factory}() returned {type(made).__name__}, not a torch nn.Module")
    return Classifier(made, f"import:{path}", code=f"import:{path}\n{_code(made, found)}")


def _code(model: nn.Module, module: ModuleType) -> str:
    """The source of the modules that define `model` and its parts, without torch's; '' for a module without source."""
    names = {module.__name__} | {type(part).__module__ for part in model.modules()}
    texts = []
    for name in sorted(name for name in names if name.partition(".")[0] != "torch"):
        try:
            texts.append(inspect.getsource(sys.modules[name]))
        except (KeyError, OSError, TypeError):  # defined in a notebook, or compiled
            texts.append("")
    return "\n".join(texts)


def _public(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_SCHEMES: dict[str, Callable[[str], Classifier]] = {"timm": _timm, "torchvision": _torchvision, "import": _imported}


def _from_artifact(source: artifact.Artifact) -> Classifier:
    """A folder of `maep classifier train`: name, model (see `architectures.build`), mean, std and classes."""
    if source.kind != "classifier":
        raise ArtifactError(f"{source.folder} holds a {source.kind}, not a classifier")
    values = source.config
    try:
        model = architectures.build(values["model"])
        name, mean, std = str(values["name"]), tuple(values["mean"]), tuple(values["std"])
        classes = tuple(values.get("classes", ()))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{source.folder}: config.json does not describe a classifier: {_one_line(error)}"
        ) from None
    load_weights(model, source)
    return Classifier(model, name, mean, std, classes)
