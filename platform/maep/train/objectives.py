"""What a training step minimises: MAE pretraining, and purification of images attacked on the fly.

An objective is a module that holds the trainable `model` and maps a Batch to a scalar loss and its parts.
All random draws follow from the batch's keys, so a step is a pure function of weights and position in the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.attacks.run import attack
from maep.errors import ConfigError
from maep.models import flops
from maep.models.classifiers.features import logits_and_features
from maep.models.conv import ConvPurifier
from maep.models.lora import merged
from maep.models.mae import MaskedAutoencoder
from maep.models.purifier import Purifier, defend
from maep.train.attack_mixture import MixtureConfig
from maep.train.config import FinetuneConfig

# keep the draws for one purpose from those for another
_MASK, _START, _NOISE, _NOISE_SIZE, _EPS, _STEPS, _CLASSIFIER, _GLOBAL = range(1, 9)


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step."""

    images: Tensor
    """float [B, 3, H, W] in [0, 1], clean, augmented."""
    labels: Tensor
    """int64 [B]."""
    keys: Tensor
    """int64 [B]: a number for each image and epoch, from which its draws follow."""
    step_key: int
    """A number for the whole step, the same on every worker."""
    places: Tensor
    """int64 [B]: where each image stands in the batch of all workers together."""
    size: int
    """Images in that batch."""
    progress: float
    """Share of the run that is done, in [0, 1]."""
    replay: int = 0
    """Which of the updates on this batch this is."""
    attacked: Tensor | None = None
    """float [B, 3, H, W] in [0, 1]: what `craft` made of the images."""
    wanted: tuple[Tensor, Tensor] | None = None
    """The teaching classifier's logits and features of the clean images."""


class Losses(NamedTuple):
    """The loss and what it is made of (detached scalars, for people)."""

    loss: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module):
    """What the loop trains: `model` is the part whose weights change and are kept."""

    model: nn.Module
    crafts = False
    """Whether `craft` does anything."""
    uses_all_weights = False
    """Whether each pass gives a gradient to every weight that is trained."""
    shards_by: str | None = None
    """The method of `model` that `forward` calls and no other, where weights may be sharded (FSDP); None: several."""

    def craft(self, batch: Batch) -> Batch:
        """What is made once for all updates on a batch."""
        return batch

    def training_flops(self) -> float | None:
        """Floating-point operations of one image's part of an update; None: not known."""
        return None

    def result(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the run's artifact holds of the trained `weights` of `model`."""
        return weights


class Pretraining(Objective):
    """Mean squared error on the hidden patches (He et al. 2022, section 3), on plain pixels."""

    model: MaskedAutoencoder
    uses_all_weights = True
    shards_by = "masked_loss"

    def __init__(self, model: MaskedAutoencoder, mask_ratio: float) -> None:
        super().__init__()
        self.model = model
        self.mask_ratio = mask_ratio

    def forward(self, batch: Batch) -> Losses:
        """The loss of one batch."""
        loss = self.model.masked_loss(batch.images, self.mask_ratio, _mask_noise(self.model, batch))
        return Losses(loss, {"masked": loss.detach()})

    def training_flops(self) -> float:
        """Matrix products of one image's forward and backward pass."""
        return flops.training(self.model.config, self.mask_ratio)


class Purification(Objective):
    """Attacked image in, clean image out; the terms and weights of LossConfig."""

    model: Purifier | ConvPurifier
    crafts = True

    def __init__(self, model: Purifier | ConvPurifier, classifiers: list[nn.Module], config: FinetuneConfig) -> None:
        super().__init__()
        self.model = model
        self.classifiers = nn.ModuleList(classifiers)
        self.config = config
        shares = config.classifier_shares or (1.0,) * len(classifiers)
        self.thresholds = [sum(shares[: i + 1]) / sum(shares) for i in range(len(shares))]

    def train(self, mode: bool = True) -> Purification:
        """Only the purifier trains; the classifiers stay frozen in eval mode."""
        self.model.train(mode)
        return self

    def craft(self, batch: Batch) -> Batch:
        """Attacks the images, and asks the teacher about the clean ones."""
        wanted = None
        if self._teacher_weight(batch):
            with torch.no_grad():
                wanted = logits_and_features(self._teacher(batch), batch.images)
        with self._seeded(batch):
            attacked = self._attacked(batch)
        return replace(batch, attacked=attacked, wanted=wanted)

    def forward(self, batch: Batch) -> Losses:
        """The loss of one crafted batch."""
        assert batch.attacked is not None
        attacked = self._noisy(batch.attacked, batch)
        with self._seeded(batch):
            purified: Tensor = self.model.unclamped(attacked)
        loss, terms = self.config.loss, {}
        if loss.pixel.weight:
            difference = purified - batch.images
            terms["pixel"] = difference.abs().mean() if loss.pixel_norm == "l1" else difference.square().mean()
        if loss.masked.weight:
            assert isinstance(self.model, Purifier)
            noise = _mask_noise(self.model.mae, batch)
            with self._seeded(batch):
                terms["masked"] = self.model.mae.masked_loss(attacked, loss.masked_ratio, noise, target=batch.images)
        if batch.wanted is not None:
            terms |= self._teacher_terms(batch, purified.clamp(0, 1))
        weights = {name: getattr(loss, name).at(batch.progress) for name in terms}
        total = sum((weights[name] * term for name, term in terms.items()), 0 * purified.sum())
        return Losses(total, {name: term.detach() for name, term in terms.items()})

    def result(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a plain purifier: adapters are merged."""
        return weights if self.config.lora is None else merged(weights, self.config.lora.alpha)

    def _teacher_weight(self, batch: Batch) -> float:
        return self.config.loss.feature.at(batch.progress) + self.config.loss.kl.at(batch.progress)

    def _attacked_classifier(self, batch: Batch) -> nn.Module:
        return self.classifiers[_pick(self.thresholds, _draw(batch, _CLASSIFIER))]

    def _teacher(self, batch: Batch) -> nn.Module:
        return self._attacked_classifier(batch) if self.config.loss.teacher == "attacked" else self.classifiers[0]

    def _teacher_terms(self, batch: Batch, purified: Tensor) -> dict[str, Tensor]:
        assert batch.wanted is not None
        wanted, wanted_features = batch.wanted
        logits, features = logits_and_features(self._teacher(batch), purified)
        terms = {}
        if self.config.loss.kl.weight:
            terms["kl"] = F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
        if self.config.loss.feature.weight:
            terms["feature"] = F.mse_loss(features, wanted_features)
        return terms

    def _attacked(self, batch: Batch) -> Tensor:
        """The batch with each kind of the mixture on its share of the images."""
        classifier = self._attacked_classifier(batch)
        adaptive = self.config.attacks.mode == "adaptive"
        target = defend(classifier, self.model) if adaptive else classifier
        keys = seeding.mix(batch.keys, _START)
        attacked = batch.images.clone()
        start = 0
        for kind, size in _sizes(self.config.attacks.mixture, batch.size):
            part = ((batch.places >= start) & (batch.places < start + size)).nonzero()[:, 0]
            start += size
            if kind.name != "none" and len(part):
                images = batch.images[part].contiguous(memory_format=torch.channels_last)
                attacked[part] = attack(target, images, batch.labels[part], self._recipe(kind, batch), keys[part])
        self.model.train(self.training)
        return attacked

    def _recipe(self, kind: MixtureConfig, batch: Batch) -> AttackConfig:
        attacks = self.config.attacks
        eps, place = attacks.eps, 2 * _draw(batch, _EPS)
        if attacks.eps_range is not None and place < 1:
            low, high = attacks.eps_range
            eps = low + (high - low) * place
        fewest, most = kind.steps
        steps = min(most, fewest + int(_draw(batch, _STEPS) * (most - fewest + 1)))
        return AttackConfig.of_effort(kind.name, eps, steps)

    @contextmanager
    def _seeded(self, batch: Batch) -> Iterator[None]:
        """What the model draws from torch's global generator (masks, adapters' dropout) follows from the batch, too."""
        if not self.model.randomised and (self.config.lora is None or not self.config.lora.dropout):
            yield
            return
        devices = [batch.images.device] if batch.images.is_cuda else []
        with seeding.GLOBAL_GENERATOR, torch.random.fork_rng(devices=devices):
            stage = 0 if batch.attacked is None else 1 + batch.replay
            torch.manual_seed(int(seeding.mix(batch.keys[0], _GLOBAL, stage)))
            yield

    def _noisy(self, images: Tensor, batch: Batch) -> Tensor:
        """`images` with Gaussian noise of a size of its own on each of a share of them."""
        if not self.config.noise:
            return images
        draws = seeding.uniform(seeding.mix(batch.keys, _NOISE_SIZE, batch.replay), 2)
        sizes = self.config.noise * draws[:, 0] * (draws[:, 1] < self.config.noise_share)
        noise = seeding.normal(seeding.mix(batch.keys, _NOISE, batch.replay), images[0].numel()).view_as(images)
        return (images + sizes.view(-1, 1, 1, 1) * noise).clamp(0, 1)


def check_classifier(classifier: nn.Module, images: Tensor, labels: Tensor, name: str) -> None:
    """Refuses a classifier that does not fit the data, before the first step.

    Raises ConfigError where its answers are not logits [B, classes], or a label has no class.
    """
    with torch.no_grad():
        logits = classifier(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ConfigError(f"classifier {name!r} answers with shape {list(logits.shape)}, not [images, classes]")
    if int(labels.max()) >= logits.shape[1]:
        raise ConfigError(
            f"classifier {name!r} has {logits.shape[1]} classes, but the data has label {int(labels.max())}"
        )


def _mask_noise(mae: MaskedAutoencoder, batch: Batch) -> Tensor:
    height, width = batch.images.shape[2:]
    num_patches = (height // mae.config.patch_size) * (width // mae.config.patch_size)
    return seeding.uniform(seeding.mix(batch.keys, _MASK, batch.replay), num_patches)


def _draw(batch: Batch, purpose: int) -> float:
    """One number in [0, 1) for the whole step."""
    return float(seeding.uniform(seeding.mix(batch.step_key, purpose)[None], 1))


def _pick(thresholds: list[float], place: float) -> int:
    return next((i for i, threshold in enumerate(thresholds) if place < threshold), len(thresholds) - 1)


def _sizes(mixture: tuple[MixtureConfig, ...], count: int) -> list[tuple[MixtureConfig, int]]:
    """How many of the `count` images of a whole batch each kind gets; the last one takes what rounding leaves."""
    sizes = [int(kind.share * count + 1e-9) for kind in mixture]  # 0.29 x 100 is a little under 29
    sizes[-1] += count - sum(sizes)
    return list(zip(mixture, sizes, strict=True))
