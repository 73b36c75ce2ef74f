"""Images/s of APGD-CE + APGD-T + Square, ours over the reference library's (pyautoattack), on one thread.

Both attack the same images of `dev` in the same process, one attack of the cascade after the other, each on what the
one before left, with the same steps; eps is one at which a good part survives. Ours attacks the classifier as the
product loads it (batch norms folded, channels_last, frozen); the reference has it as a user of that library does: the
network as published, contiguous. A third run gives the reference our folded channels_last classifier, so that both
shares of the ratio are seen: that of the classifier's form, and that of the attack.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.attacks.run import attack
from maep.data import datasets, lists
from maep.data.config import DataConfig
from maep.models.classifiers.load import IMAGENET_MEAN, IMAGENET_STD, CifarResNet, Classifier, load_classifier

NUM, SLOTS = 64, 32
EPS = 0.6 / 255
STEPS, TARGETS, QUERIES = 20, 3, 200
ROUNDS = 2  # the faster of which counts, for each alike

Cascade = Callable[[Tensor, Tensor], Tensor]
"""images, labels -> bool [B]: which stay right"""


def ours(classifier: nn.Module) -> Cascade:
    """What the product does with `stop_at_success`."""
    cascade = (
        AttackConfig("apgd-ce", EPS, STEPS),
        AttackConfig("apgd-t", EPS, STEPS, targets=TARGETS),
        AttackConfig("square", EPS, queries=QUERIES),
    )

    def run(images: Tensor, labels: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        keys = seeding.mix(0, torch.arange(len(images)))
        standing = predicted(classifier, images) == labels
        for config in cascade:
            rows = standing.nonzero()[:, 0]
            made = attack(classifier, images[rows], labels[rows], config, keys[rows], True, SLOTS)
            standing[rows] = predicted(classifier, made) == labels[rows]
        return standing

    return run


def reference(classifier: nn.Module) -> Cascade:
    """The library's three attacks as its AutoAttack calls them, in batches, on what still stands.

    Without its checks for randomised and dynamic defences, which would only cost it time. Images are contiguous, the
    only ones that it takes; convolutions whose weights are channels_last turn them round by themselves.
    """
    from pyautoattack import AutoAttack

    library = AutoAttack(classifier, norm="Linf", eps=EPS, version="custom", attacks=[], seed=0)
    library.apgd.n_iter = library.apgd_targeted.n_iter = STEPS
    library.apgd.n_restarts, library.apgd.loss = 1, "ce"
    library.apgd_targeted.n_target_classes = TARGETS
    library.square.n_queries = QUERIES

    def run(images: Tensor, labels: Tensor) -> Tensor:
        standing = predicted(classifier, images) == labels
        for made in (library.apgd, library.apgd_targeted, library.square):
            for rows in standing.nonzero()[:, 0].split(SLOTS):
                attacked = made.perturb(images[rows], labels[rows])
                standing[rows] = predicted(classifier, attacked) == labels[rows]
        return standing

    return run


@torch.no_grad()
def predicted(classifier: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = classifier(images)
    return logits.argmax(dim=1)


def as_published(root: Path) -> Classifier:
    """ResNet-20 with its batch norms, contiguous, as its weights are loaded."""
    network = CifarResNet(20)
    network.load_state_dict(load_file(root / "weights" / "cifar10_resnet20.safetensors"), strict=False)
    return Classifier(network, "published", IMAGENET_MEAN, IMAGENET_STD).eval()


def timed(cascade: Cascade, images: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Seconds of this process's processor, which other work on the machine does not lengthen as it does the clock."""
    start = time.process_time()
    standing = cascade(images, labels)
    return time.process_time() - start, standing


@pytest.mark.timeout(1800)
def test_faster_than_the_reference(shared_data: Path) -> None:
    """By images/s, counted on the images that the classifier gets right and that are therefore attacked.

    Twice the reference was aimed at and is not reached (docs/experiments.md): on survivors both make the same passes,
    and a pass is at what PyTorch's convolutions take.
    """
    torch.set_num_threads(1)
    folded, published = load_classifier("cifar10_resnet20", shared_data), as_published(shared_data)
    named = lists.named("cifar10-dev-500")
    chosen = lists.pick(datasets.load(DataConfig("cifar10", str(shared_data)), named.split), named)
    images, labels = chosen.batch(range(NUM))
    torch.testing.assert_close(folded(images[:4]), published(images[:4]), rtol=1e-3, atol=1e-3)

    cascades = {
        "ours": ours(folded.to(memory_format=torch.channels_last)),
        "reference, the classifier as published": reference(published),
        "reference, our folded channels_last classifier": reference(folded),
    }
    seconds: dict[str, float] = dict.fromkeys(cascades, float("inf"))
    standing: dict[str, Tensor] = {}
    for _ in range(ROUNDS):
        for name, cascade in cascades.items():
            took, standing[name] = timed(cascade, images, labels)
            seconds[name] = min(seconds[name], took)
    num = int((predicted(folded, images) == labels).sum())
    print()
    for name, took in seconds.items():
        left = int(standing[name].sum())
        print(
            f"{name}: {num / took:.2f} images/s, {left} of {num} stand; ours is {took / seconds['ours']:.2f} times that"
        )
    survivors = {name: float(each.sum()) / num for name, each in standing.items()}
    assert 0.3 <= survivors["ours"] <= 0.7
    assert max(survivors.values()) - min(survivors.values()) <= 2 / num, "the attacks are not equally strong"
    assert seconds["reference, the classifier as published"] / seconds["ours"] >= 1.2
