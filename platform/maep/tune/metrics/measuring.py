"""What a trial is judged by: its purifier before a classifier, on few `dev` images; never `test`, nor its own loss."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from maep import artifact
from maep.attacks.config import AttackConfig
from maep.attacks.run import attack
from maep.data import lists
from maep.data.datasets import data_root, load
from maep.data.image_set import ImageSet
from maep.evaluate.attacked_sets import AttackedSet, as_tensor, cache_folder, round_to_budget
from maep.evaluate.measure import Expectation, attack_keys
from maep.models.build import build_model, load_weights
from maep.models.classifiers.load import Classifier, load_classifier
from maep.models.purifier import defend
from maep.train.config import FinetuneConfig
from maep.tune.config import MeasureConfig
from maep.tune.record import Objective

_BATCH = 32


@dataclass
class Measured:
    """Objectives by name, and for each accuracy the images right and asked."""

    objectives: dict[str, float] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, name: Objective, right: Tensor) -> None:
        """An accuracy, from bool [B]."""
        self.counts[name] = int(right.sum()), len(right)
        self.objectives[name] = float(right.double().mean())


def measure(
    folder: Path, common: FinetuneConfig, wanted: Sequence[Objective], how: MeasureConfig, seed: int
) -> Measured:
    """Measures the purifier, or checkpoint of one, in `folder` on the CPU: `wanted`, clean accuracy and parameters.

    Images, classifier and budget are those of the search, `common` to all its trials, and not what one of them was
    trained with: else the trial of the weakest attack would look best.

    clean_accuracy      share of right answers on clean images
    oblivious_accuracy  the same in the worst case per image over `how.oblivious`, made on the bare classifier and kept
    adaptive_accuracy   the same under `how.adaptive` through purifier and classifier, with `how.eot` if it is random
    latency_ms          of one image through the purifier on one thread, the median of `how.latency_passes`
    num_parameters      of the purifier
    Raises ArtifactError for another artifact, DataError where the data is missing, FloatingPointError where the
    purifier gives no numbers.
    """
    saved = artifact.read(folder)
    purifier = load_weights(build_model(saved.config["model"]), saved).eval().requires_grad_(False)
    classifier = load_classifier(common.classifiers[0], data_root(common.data))
    whole = load(common.data, "dev")
    images = whole.select(range(min(len(whole), how.num_images)))
    eps = common.attacks.eps if how.eps is None else how.eps
    found = Measured()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for the masks of a randomised purifier
        clean, labels = images.batch(range(len(images)))
        found.add("clean_accuracy", _right(defend(classifier, purifier), clean, labels))
        if "oblivious_accuracy" in wanted:
            attacks = [AttackConfig(name, eps, how.steps) for name in how.oblivious]
            found.add("oblivious_accuracy", _oblivious(purifier, classifier, images, attacks, seed))
        if "adaptive_accuracy" in wanted:
            adaptive = AttackConfig(
                how.adaptive, eps if how.adaptive_eps is None else how.adaptive_eps, how.adaptive_steps
            )
            few = images.select(range(min(len(images), how.adaptive_images or len(images))))
            found.add("adaptive_accuracy", _adaptive(purifier, classifier, few, adaptive, how.eot, seed))
        if "latency_ms" in wanted:
            found.objectives["latency_ms"] = _latency_ms(purifier, clean[:1], how.latency_passes)
    found.objectives["num_parameters"] = float(sum(parameter.numel() for parameter in purifier.parameters()))
    return found


def _oblivious(
    purifier: nn.Module, classifier: Classifier, images: ImageSet, attacks: Sequence[AttackConfig], seed: int
) -> Tensor:
    """bool [B]: right under every attack on the bare classifier."""
    chosen = lists.make(f"{images.name}-dev[:{len(images)}]", images.name, "dev", tuple(images.indices.tolist()))
    labels = torch.from_numpy(images.labels)
    right = torch.ones(len(images), dtype=torch.bool)
    for each in attacks:
        kept = AttackedSet(classifier.sha256, None, images, chosen, each, seed, cache_folder())
        right &= _right(defend(classifier, purifier), as_tensor(kept.made(classifier)), labels)
    return right


def _adaptive(
    purifier: nn.Module, classifier: nn.Module, images: ImageSet, adaptive: AttackConfig, eot: int, seed: int
) -> Tensor:
    """bool [B]: right under the attack through both, after rounding to 8 bits.

    Without the mean over its draws a randomised purifier would look robust for its noise, and the search choose it.
    """
    defended = defend(classifier, purifier)
    clean, labels = images.batch(range(len(images)))
    keys = attack_keys(adaptive, seed, torch.from_numpy(images.indices))
    random = bool(purifier.randomised)
    target = Expectation(defended, eot) if random else defended
    attacked = attack(target, clean, labels, adaptive, keys, not random, _BATCH)  # one draw does not break a random one
    return _right(defended, as_tensor(round_to_budget(attacked, clean, adaptive.eps).numpy()), labels)


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits = torch.cat([model(part) for part in torch.split(images, _BATCH)])
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the purifier gives no finite numbers")
    return logits.argmax(dim=1) == labels


@torch.no_grad()
def _latency_ms(purifier: nn.Module, image: Tensor, passes: int) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = []
        for _ in range(passes + 2):  # two to warm up
            start = time.perf_counter()
            purifier(image)
            taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(taken[2:])
