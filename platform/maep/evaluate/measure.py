"""Measure a defended model on images, clean or under attack.

Every accuracy under attack comes from `measure`, in an evaluation, in the validation beside training and in a search's
trials. All of them therefore apply the same rules: EOT, the stopping rule, rounding to 8 bits, and the majority over
draws. The number of EOT passes and draws is each caller's own setting (`DefendedModel`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from maep import seeding, storage
from maep.attacks.config import AttackConfig
from maep.attacks.passes import logits_of
from maep.attacks.run import attack
from maep.data.image_set import ImageSet, to_float
from maep.evaluate.config import Threat
from maep.evaluate.results import rows

CASCADES: tuple[Threat, ...] = ("adaptive", "bpda", "black-box", "fixed-mask")
"""Threat models in which one success on an image is all that counts: an attack stops at it, and the next attack of
the cascade takes only the images that are still right. An attack on a randomised model always uses its full budget."""


class Expectation(nn.Module):
    """Mean logits of `passes` forward passes (EOT, Athalye et al. 2018, arXiv 1707.07397)."""

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model = model
        self.passes = passes

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> logits [B, classes]."""
        return torch.stack([self.model(images) for _ in range(self.passes)]).mean(dim=0)


@dataclass(frozen=True)
class DefendedModel:
    """A classifier behind a purifier: `model` maps float [B, 3, H, W] in [0, 1] to logits [B, classes].

    The logits of a `randomised` model differ from pass to pass. An attack differentiates the mean of `eot` passes,
    and the predicted class is the majority of `draws` passes on the attacked image.
    """

    model: nn.Module
    randomised: bool = False
    eot: int = 1
    draws: int = 1

    @property
    def target(self) -> nn.Module:
        """The model that an attack differentiates or queries."""
        return Expectation(self.model, self.eot) if self.randomised and self.eot > 1 else self.model


class ImageBatch(NamedTuple):
    """Clean `images` (float [B, 3, H, W] in [0, 1]), their `labels` and official `indices` (int64 [B])."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def where(self, chosen: Tensor) -> ImageBatch:
        """The images for which bool `chosen` [B] is true."""
        return ImageBatch(*(part[chosen] for part in self))


@dataclass
class Measurement:
    """What a model predicts for B images, over `num_draws` forward passes each.

    prediction  int64 [B]: the class that most draws give
    loss        float32 [B]: cross-entropy of the label, mean over draws
    num_right   int64 [B]: draws that give the label
    change      float32 [B]: size of the attack's change, in its norm
    inherited   bool [B]: not attacked, because wrong before
    """

    prediction: Tensor
    loss: Tensor
    num_right: Tensor
    change: Tensor
    inherited: Tensor
    num_draws: int

    COLUMNS: ClassVar = ("prediction", "loss", "num_right", "change", "inherited")

    def right(self, labels: Tensor) -> Tensor:
        """bool [B]: whether the prediction is the label."""
        return self.prediction == labels

    def updated(self, chosen: Tensor, new: Measurement) -> Measurement:
        """This measurement, with the images in bool `chosen` [B] taken from `new`; the others count as inherited."""
        columns = {name: getattr(self, name).clone() for name in self.COLUMNS}
        for name, values in columns.items():
            values[chosen] = getattr(new, name)
        return Measurement(**{**columns, "inherited": ~chosen}, num_draws=self.num_draws)


def measure(
    defended: DefendedModel,
    batch: ImageBatch,
    attacked: Tensor | AttackConfig | None = None,
    threat: Threat = "adaptive",
    *,
    seed: int = 0,
    draw_seed: int = 0,
    batch_size: int | None = None,
    previous: Measurement | None = None,
) -> Measurement:
    """What `defended` predicts for the batch.

    `attacked`: None for the clean images, a tensor for images attacked beforehand (`oblivious`, `transfer`), or the
    attack to make through the model, under `threat`. `previous` is the measurement of the attack before it in a
    cascade: only images that are right in it are attacked, or judged as `attacked`.

    seed        decides each image's draws of the attack, with its index
    draw_seed   decides the draws of a randomised model
    batch_size  images in one forward pass of an attack; None: all. A randomised model always takes all, because its
                draws go by position in the batch

    Raises FloatingPointError where the logits are NaN or infinite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed)
        right = torch.ones_like(batch.labels, dtype=torch.bool) if previous is None else previous.right(batch.labels)
        if previous is not None and not right.any():
            return dataclasses.replace(previous, inherited=~right)
        left = batch if previous is None else batch.where(right)
        if not isinstance(attacked, AttackConfig):
            images = batch.images if attacked is None else attacked
            found = _predict(defended, left, images if previous is None else images[right], "Linf", draw_seed)
            return found if previous is None else previous.updated(right, found)
        stop = threat in CASCADES and not defended.randomised
        size = None if defended.randomised else batch_size
        images = attack_images(defended.target, left, attacked, seed, stop, size)
        found = _predict(defended, left, images, attacked.norm, draw_seed)
        return found if previous is None else previous.updated(right, found)


def measure_set(
    defended: DefendedModel,
    images: ImageSet,
    attacked: NDArray[np.uint8] | AttackConfig | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> NDArray[np.bool_]:
    """bool [N]: which images `measure` finds right, `batch_size` at a time; `attacked` may be uint8 [N, H, W, 3].

    An attack is made under threat model `adaptive`.
    """
    right = []
    for start in range(0, len(images), batch_size):
        where = np.arange(start, min(start + batch_size, len(images)))
        batch = ImageBatch(*images.batch(where), torch.from_numpy(images.indices[where]))
        part = to_float(torch.from_numpy(attacked[where])) if isinstance(attacked, np.ndarray) else attacked
        found = measure(defended, batch, part, seed=seed, draw_seed=int(seeding.mix(seed, start)))
        right.append(found.right(batch.labels).numpy())
    return np.concatenate(right)


def attack_images(
    target: nn.Module,
    batch: ImageBatch,
    config: AttackConfig,
    seed: int,
    stop_at_success: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """The batch attacked on `target` as a client would send it, float [B, 3, H, W] in [0, 1].

    An attack whose images are rounded to 8 bits (`rounds`) sees `target` behind that rounding, so that a success is
    one of the rounded image; see `maep.attacks.run.attack` for the rest. The batch's images are on the 8-bit grid.
    """
    salt = int(storage.sha256(config.name.encode())[:12], 16)
    keys = seeding.mix(seed, salt, batch.indices)
    if not rounds(config):
        return attack(target, batch.images, batch.labels, config, keys, stop_at_success, batch_size)
    if config.norm == "Linf":
        config = dataclasses.replace(config, eps=_whole_levels(config.eps))
    found = attack(EightBits(target), batch.images, batch.labels, config, keys, stop_at_success, batch_size)
    return to_grid(found)


class EightBits(nn.Module):
    """A model that rounds images to 8 bits; the gradient passes the rounding unchanged (Athalye et al. 2018)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> logits [B, classes]."""
        logits: Tensor = self.model(images + (to_grid(images) - images).detach())
        return logits


def rounds(config: AttackConfig) -> bool:
    """Whether this attack's images are rounded to 8 bits.

    Those of `spatial`, `patch` and Linf are. In L2 and L1, rounding to the nearest level may exceed the budget, and
    rounding towards the clean image would take half a level off each value. Within an Linf budget below one level,
    rounding would undo the attack.
    """
    return config.norm in ("spatial", "patch") or (config.norm == "Linf" and _whole_levels(config.eps) > 0)


def to_grid(images: Tensor) -> Tensor:
    """The nearest 8-bit levels of float `images` in [0, 1]."""
    return images.mul(255).round().div(255)


def _whole_levels(eps: float) -> float:
    """The budget that 8-bit images can use up: `eps` rounded down to a multiple of 1/255."""
    return int(eps * 255 + 1e-4) / 255


@torch.no_grad()
def _predict(defended: DefendedModel, batch: ImageBatch, attacked: Tensor, norm: str, draw_seed: int) -> Measurement:
    predictions, losses = [], []
    for draw in range(defended.draws if defended.randomised else 1):
        torch.manual_seed(int(seeding.mix(draw_seed, draw)))
        logits = logits_of(defended.model, attacked)
        predictions.append(logits.argmax(dim=1))
        losses.append(F.cross_entropy(logits, batch.labels, reduction="none"))
    drawn = torch.stack(predictions)
    return Measurement(
        prediction=drawn.mode(dim=0).values,
        loss=torch.stack(losses).mean(dim=0),
        num_right=(drawn == batch.labels).sum(dim=0),
        change=rows.change(attacked - batch.images, norm),
        inherited=torch.zeros(len(batch.labels), dtype=torch.bool),
        num_draws=len(drawn),
    )
