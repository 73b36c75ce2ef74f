"""Training objectives: MAE pretraining, and purification of images attacked on the fly.

An objective is a module that holds the trainable `model` and maps a Batch to a scalar loss and its parts.
The batch's keys seed all random draws, so a step is a pure function of weights and position in the run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from maep import registry, seeding
from maep.attacks.config import AttackConfig
from maep.attacks.run import attack
from maep.models import flops
from maep.models.classifiers.features import logits_and_features
from maep.models.lora import merged
from maep.models.mae import MaskedAutoencoder
from maep.models.purifier import defend
from maep.models.robust import RobustPurifier
from maep.train import batch as batches
from maep.train import crafting
from maep.train.attack_mixture import MixtureConfig
from maep.train.batch import Batch
from maep.train.config import FinetuneConfig
from maep.train.loss_config import factor_at
from maep.train.losses.inputs import LossInputs


class Losses(NamedTuple):
    """The loss, and its parts as detached scalars for logging."""

    loss: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module):
    """A loss to minimise: `model` is the part whose weights are trained and saved."""

    model: nn.Module
    crafts = False
    """Whether `craft` does anything."""
    uses_all_weights = False
    """Whether each pass gives a gradient to every weight that is trained."""
    shards_by: str | None = None
    """The only method of `model` that `forward` calls, as sharding (FSDP) requires; None: it calls several."""

    def craft(self, batch: Batch) -> Batch:
        """Prepares a batch, once for all updates on it."""
        return batch

    def training_flops(self) -> float | None:
        """Floating-point operations of an update, per image; None: unknown."""
        return None

    def result(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights to store in the run's artifact, from the trained `weights` of `model`."""
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
        loss = self.model.masked_loss(batch.images, self.mask_ratio, batches.mask_noise(self.model, batch))
        return Losses(loss, {"masked": loss.detach()})

    def training_flops(self) -> float:
        """Matrix products of one image's forward and backward pass."""
        return flops.training(self.model.config, self.mask_ratio)


class Purification(Objective):
    """Attacked image in, clean image out; the terms and weights of LossConfig."""

    model: nn.Module
    crafts = True

    def __init__(self, model: nn.Module, classifiers: list[nn.Module], config: FinetuneConfig) -> None:
        super().__init__()
        self.model = model
        self.classifiers = nn.ModuleList(classifiers)
        self.config = config
        shares = config.classifier_shares or (1.0,) * len(classifiers)
        self._has_head = registry.families.declared(config.model.name).head
        if config.part != "all":
            model.requires_grad_(False)
            model.get_submodule(config.part).requires_grad_(True)
        self.thresholds = [sum(shares[: i + 1]) / sum(shares) for i in range(len(shares))]

    def train(self, mode: bool = True) -> Purification:
        """Only the purifier trains, or `part` of it; all that is frozen stays in eval mode."""
        self.model.train(mode)
        if self.config.part != "all":
            self.model.get_submodule("encoder" if self.config.part == "decoder" else "decoder").eval()
        return self

    def craft(self, batch: Batch) -> Batch:
        """Attacks the images, and computes the teacher's outputs for the clean ones."""
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
        return self._losses(attacked, batch)

    def _losses(self, attacked: Tensor, batch: Batch, attacks: bool = False) -> Losses:
        """With `attacks`, only the terms that attacks raise."""
        inputs = LossInputs(
            batch=batch,
            model=self.model,
            attacked=attacked,
            targets=self._verdicts(batch) if self.config.true_verdicts is not None else batch.labels,
            purify=self._purified,
            teacher=self._teacher(batch),
            config=self.config.loss,
            seeded=lambda: self._seeded(batch),
        )
        values, terms = {}, self.config.loss.terms
        for name in registry.losses.names():
            if name in terms and terms[name].at(batch.progress) and (terms[name].attacked or not attacks):
                values[name] = registry.losses.get(name)(inputs, terms[name])
        weighted = [terms[name].at(batch.progress) * value for name, value in values.items()]
        total = sum(weighted[1:], weighted[0]) if weighted else 0 * inputs.purified.sum()
        return Losses(total, {name: value.detach() for name, value in values.items()})

    def _purified(self, inputs: LossInputs) -> Tensor:
        purified: Tensor
        if self._has_head:
            model = cast(RobustPurifier, self.model)
            if self.config.true_verdicts is None:
                verdict = model.verdict_of(inputs.head_logits)
            else:
                verdict = one_hot(inputs.targets, model.num_classes).to(inputs.attacked)
            return model.write(inputs.attacked, verdict)
        with inputs.seeded():
            purified = getattr(self.model, "unclamped", self.model)(inputs.attacked)
        return purified

    def _verdicts(self, batch: Batch) -> Tensor:
        """int64 [B]: the true class on a share of the images, a random one on the others."""
        assert self.config.true_verdicts is not None
        draws = seeding.uniform(seeding.mix(batch.keys, batches.VERDICT, batch.replay), 2)
        drawn = (draws[:, 1] * cast(RobustPurifier, self.model).num_classes).long()
        return torch.where(draws[:, 0] < self.config.true_verdicts, batch.labels, drawn)

    def result(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a plain purifier: adapters are merged."""
        return weights if self.config.lora is None else merged(weights, self.config.lora.alpha)

    def _teacher_weight(self, batch: Batch) -> float:
        return sum(term.at(batch.progress) for name, term in self.config.loss.terms.items() if self._is_taught(name))

    @staticmethod
    def _is_taught(name: str) -> bool:
        return registry.losses.declared(name).teacher

    def _attacked_classifier(self, batch: Batch) -> nn.Module:
        return self.classifiers[_pick(self.thresholds, batches.draw(batch, batches.CLASSIFIER))]

    def _teacher(self, batch: Batch) -> nn.Module:
        return self._attacked_classifier(batch) if self.config.loss.teacher == "attacked" else self.classifiers[0]

    def _attacked(self, batch: Batch) -> Tensor:
        """The batch with each kind of the mixture on its share of the images."""
        if self.config.attacks.mode == "trained":
            return self._attacked_on_the_loss(batch)
        classifier = self._attacked_classifier(batch)
        adaptive = self.config.attacks.mode == "adaptive"
        target = defend(classifier, self.model) if adaptive else classifier
        keys = seeding.mix(batch.keys, batches.START)
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

    def _attacked_on_the_loss(self, batch: Batch) -> Tensor:
        """The same in mode `trained`; the model is in eval mode meanwhile."""
        eps, keys = self._budgets(batch), seeding.mix(batch.keys, batches.START)
        attacked, start = batch.images.clone(), 0
        if not eps.any():
            return attacked
        self.model.eval()
        for kind, size in _sizes(self.config.attacks.mixture, batch.size):
            rows = ((batch.places >= start) & (batch.places < start + size)).nonzero()[:, 0]
            start += size
            if kind.name == "none" or not len(rows):
                continue
            part = batch.select(rows)
            loss = functools.partial(self._attack_loss, part)
            if kind.name == "n-fgsm":
                attacked[rows] = crafting.n_fgsm(loss, part.images, eps[rows], keys[rows])
            else:
                attacked[rows] = crafting.pgd(loss, part.images, eps[rows], keys[rows], self._recipe(kind, batch).steps)
        self.train(self.training)
        return attacked

    def _attack_loss(self, batch: Batch, images: Tensor) -> Tensor:
        """The scalar that the attacks on `images` of the batch raise."""
        return self._losses(images, batch, attacks=True).loss

    def _budgets(self, batch: Batch) -> Tensor:
        """float [B, 1, 1, 1]: each image's budget in mode `trained`."""
        attacks = self.config.attacks
        low, high = attacks.eps_range or (attacks.eps, attacks.eps)
        places = seeding.uniform(seeding.mix(batch.keys, batches.EPS), 1)
        return ((low + (high - low) * places) * factor_at(attacks.schedule, batch.progress)).view(-1, 1, 1, 1)

    def _recipe(self, kind: MixtureConfig, batch: Batch) -> AttackConfig:
        attacks = self.config.attacks
        eps, place = attacks.eps, 2 * batches.draw(batch, batches.EPS)
        if attacks.eps_range is not None and place < 1:
            low, high = attacks.eps_range
            eps = low + (high - low) * place
        fewest, most = kind.steps
        steps = min(most, fewest + int(batches.draw(batch, batches.STEPS) * (most - fewest + 1)))
        return AttackConfig.of_effort(kind.name, eps, steps)

    @contextmanager
    def _seeded(self, batch: Batch) -> Iterator[None]:
        """Seeds torch's global generator from the batch, for draws inside the model (masks, adapters' dropout)."""
        if not self.model.randomised and (self.config.lora is None or not self.config.lora.dropout):
            yield
            return
        devices = [batch.images.device] if batch.images.is_cuda else []
        with seeding.GLOBAL_GENERATOR, torch.random.fork_rng(devices=devices):
            stage = 0 if batch.attacked is None else 1 + batch.replay
            torch.manual_seed(int(seeding.mix(batch.keys[0], batches.GLOBAL, stage)))
            yield

    def _noisy(self, images: Tensor, batch: Batch) -> Tensor:
        """`images` with Gaussian noise on a share of them; each draws its own standard deviation."""
        if not self.config.noise:
            return images
        draws = seeding.uniform(seeding.mix(batch.keys, batches.NOISE_SIZE, batch.replay), 2)
        sizes = self.config.noise * draws[:, 0] * (draws[:, 1] < self.config.noise_share)
        noise = seeding.normal(seeding.mix(batch.keys, batches.NOISE, batch.replay), images[0].numel()).view_as(images)
        return (images + sizes.view(-1, 1, 1, 1) * noise).clamp(0, 1)


def _pick(thresholds: list[float], place: float) -> int:
    return next((i for i, threshold in enumerate(thresholds) if place < threshold), len(thresholds) - 1)


def _sizes(mixture: tuple[MixtureConfig, ...], count: int) -> list[tuple[MixtureConfig, int]]:
    """How many of the `count` images of a whole batch each kind gets; the last one takes the remainder."""
    sizes = [int(kind.share * count + 1e-9) for kind in mixture]  # 0.29 x 100 is a little under 29
    sizes[-1] += count - sum(sizes)
    return list(zip(mixture, sizes, strict=True))
