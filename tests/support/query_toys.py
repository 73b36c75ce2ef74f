"""Models with a known answer to a query attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maep import seeding
from maep.models.classifiers.load import CifarResNet, Classifier, fold_batch_norm


class Counter(nn.Module):
    """Returns its input; records the images and the size of each batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.batches: list[int] = []
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        self.seen.append(images.detach().clone())
        logits: Tensor = self.model(images)
        return logits


class Decisions(nn.Module):
    """One-hot answers: the class that the model decides for, and nothing of how sure it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(images.dtype)


def curved(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random network with steep logits, so that losses go up and down; its answers depend on the image."""
    torch.manual_seed(0)
    net = CifarResNet(8, width=4).eval()
    with torch.no_grad():
        net.linear.weight.mul_(30)
    return fold_batch_norm(Classifier(net, "random").eval()).requires_grad_(False).to(dtype)


def linear(classes: int = 2, side: int = 4, seed: int = 0) -> nn.Sequential:
    """A linear classifier of [B, 3, side, side], with dense weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, classes)).requires_grad_(False)


def images_and_labels(model: nn.Module, num: int = 12, side: int = 8) -> tuple[Tensor, Tensor]:
    """Images on the 8-bit grid, black and white among them; what the model says, but for every fourth."""
    images = torch.randint(0, 256, (num, 3, side, side), generator=torch.Generator().manual_seed(1)) / 255
    images[0], images[1] = 0, 1
    images = images.to(next(model.parameters()).dtype)
    with torch.no_grad():
        logits = model(images)
    labels = logits.argmax(dim=1)
    labels[::4] = (labels[::4] + 1) % logits.shape[1]
    return images, labels


def inner_images(num: int = 32, side: int = 4, low: float = 0.3, high: float = 0.7) -> Tensor:
    """Images away from black and white, where the range does not cut an attack short."""
    return low + (high - low) * torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(2))


def keys(num: int, seed: int = 3) -> Tensor:
    return seeding.mix(seed, torch.arange(num))


def gap(model: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a linear model of two classes: its labels [B], by how much they win [B], along which vector [B, D]."""
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    logits = model(images)
    labels = logits.argmax(dim=1)
    wins = (logits.amax(dim=1) - logits.amin(dim=1)).detach()
    along = (layer.weight[labels] - layer.weight[1 - labels]).detach()
    return labels, wins, along
