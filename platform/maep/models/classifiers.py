"""The classifiers that purifiers protect: images in [0, 1] to logits, normalisation inside, frozen.

A classifier is named by a spec:
`cifar10_resnet20|44|56` and `imagenet_squeezenet1_0` (weights under `<data root>/weights`), `timm:NAME`,
`torchvision:NAME`, `import:package.module:factory` (any function or class that returns an `nn.Module`),
or a folder that `maep classifier train` wrote.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from maep import artifact
from maep.errors import ArtifactError, ConfigError, DataError, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """float [B, 3, H, W] in [0, 1] -> logits [B, classes].

    `name` and `sha256` (over the weights) identify it in results.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        name: str,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.sha256 = weights_sha256(model)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2016 (arXiv 1512.03385, section 4.2), depth 6n + 2, option A shortcuts.

    Takes normalised images [B, 3, H, W]; parameter names follow akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self, depth: int, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        assert depth % 6 == 2, "depth must be 6n + 2"
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _layer(width, width, num_blocks, stride=1)
        self.layer2 = _layer(width, 2 * width, num_blocks, stride=2)
        self.layer3 = _layer(2 * width, 4 * width, num_blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.padding = (out_channels - channels) // 2

    def forward(self, features: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        if self.padding:
            features = F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(inner + features)


def _layer(channels: int, out_channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = _Block(channels, out_channels, stride)
    return nn.Sequential(first, *(_Block(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))


def weights_sha256(model: nn.Module) -> str:
    """Digest over the names and values of a model's state dict: the identity of a classifier in results."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_classifier(spec: str, root: str | Path = "data") -> Classifier:
    """The classifier that `spec` names (see the module's text), in eval mode, frozen, batch norms folded.

    `root` is the data root, whose folder `weights` holds the named ones.
    Raises ConfigError for an unknown name, DataError for missing weights.
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
        raise ConfigError(f"classifier {spec!r} is not known and no folder: {nearest(spec, known)}")
    return fold_batch_norm(classifier.eval()).requires_grad_(False)


def fold_batch_norm(classifier: Classifier) -> Classifier:
    """Folds the batch norms of a frozen CIFAR ResNet into its convolutions: the same function, fewer passes."""
    if isinstance(classifier.model, CifarResNet):
        _fold(classifier.model, "conv1", "bn1")
        for block in classifier.model.modules():
            if isinstance(block, _Block):
                _fold(block, "conv1", "bn1")
                _fold(block, "conv2", "bn2")
    return classifier


def _fold(parent: nn.Module, convolution: str, norm: str) -> None:
    fused = fuse_conv_bn_eval(getattr(parent, convolution), getattr(parent, norm))
    setattr(parent, convolution, fused)
    setattr(parent, norm, nn.Identity())


def _cifar_resnet(depth: int) -> nn.Module:
    return CifarResNet(depth)


def _squeezenet() -> Any:
    from torchvision.models import squeezenet1_0

    model = squeezenet1_0(weights=None)
    model.classifier[1].padding = (1, 1)  # as in the Caffe model that these weights come from
    return model


_NAMED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "cifar10_resnet20": ("cifar10_resnet20.safetensors", lambda: _cifar_resnet(20)),
    "cifar10_resnet44": ("cifar10_resnet44.safetensors", lambda: _cifar_resnet(44)),
    "cifar10_resnet56": ("cifar10_resnet56.safetensors", lambda: _cifar_resnet(56)),
    "imagenet_squeezenet1_0": ("imagenet_squeezenet1_0_dc.safetensors", _squeezenet),
}


def _named(name: str, root: Path) -> Classifier:
    file, factory = _NAMED[name]
    path = root / "weights" / file
    if not path.is_file():
        raise DataError(
            f"classifier {name!r} needs its weights at {path}: set $MAEP_DATA to the folder that holds weights/,"
            " or train one with maep classifier train"
        )
    model = factory()
    try:
        missing = model.load_state_dict(load_file(path), strict=False).missing_keys
    except Exception as error:  # safetensors has no error class of its own that covers a truncated file
        raise DataError(f"{path} does not hold the weights of {name}: {' '.join(str(error).split())}") from None
    lacking = [key for key in missing if not key.endswith("num_batches_tracked")]
    if lacking:
        raise DataError(f"{path} lacks {lacking[0]!r} of {name}: fetch it again")
    return Classifier(model, name, IMAGENET_MEAN, IMAGENET_STD)


def _timm(name: str) -> Classifier:
    import timm

    if name not in timm.list_models():
        raise ConfigError(f"classifier 'timm:{name}' is not known: {nearest(name, timm.list_models())}")
    model = timm.create_model(name, pretrained=True)
    settings = timm.data.resolve_model_data_config(model)
    return Classifier(model, f"timm:{name}", settings["mean"], settings["std"])


def _torchvision(name: str) -> Classifier:
    import torchvision

    if name not in torchvision.models.list_models():
        options = torchvision.models.list_models()
        raise ConfigError(f"classifier 'torchvision:{name}' is not known: {nearest(name, options)}")
    model = torchvision.models.get_model(name, weights="DEFAULT")
    return Classifier(model, f"torchvision:{name}", IMAGENET_MEAN, IMAGENET_STD)


def _imported(path: str) -> Classifier:
    module, colon, factory = path.partition(":")
    if not colon:
        raise ConfigError(f"classifier 'import:{path}' is written import:package.module:factory")
    try:
        model = getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"classifier 'import:{path}' cannot be imported: {error}") from None
    if not isinstance(model, nn.Module):
        raise ConfigError(f"classifier 'import:{path}' gave a {type(model).__name__}, not a torch nn.Module")
    return Classifier(model, f"import:{path}")


_SCHEMES: dict[str, Callable[[str], Classifier]] = {"timm": _timm, "torchvision": _torchvision, "import": _imported}


def _from_artifact(source: artifact.Artifact) -> Classifier:
    if source.kind != "classifier":
        raise ArtifactError(f"{source.folder} holds a {source.kind}, not a classifier")
    model = CifarResNet(**source.config["model"])
    model.load_state_dict(source.weights())
    return Classifier(model, source.config["name"], tuple(source.config["mean"]), tuple(source.config["std"]))
