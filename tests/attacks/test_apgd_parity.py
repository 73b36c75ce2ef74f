"""APGD-CE against its authors' code (pyautoattack, MIT): from the same start, the same images fall."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.attacks.losses import cross_entropy
from maep.attacks.run import attack
from maep.data import datasets, lists
from maep.data.datasets import DataConfig
from maep.models.classifiers import load_classifier

NUM, STEPS = 200, 20
EPS = 0.75 / 255  # where a good part of the images survives


class FirstSeen(nn.Module):
    """Remembers where the attack started."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.start: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.start is None:
            self.start = images.detach().clone()
        logits: Tensor = self.model(images)
        return logits


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_same_images_fall(shared_data: Path) -> None:
    reference = pytest.importorskip("pyautoattack.autopgd_base", reason="the authors' code is not installed")
    classifier = load_classifier("cifar10_resnet20", shared_data)
    named = lists.named("cifar10-dev-500")
    chosen = lists.pick(datasets.load(DataConfig("cifar10", str(shared_data)), named.split), named)
    images, labels = chosen.batch(range(NUM))

    seen = FirstSeen(classifier)
    ours = attack(seen, images, labels, AttackConfig("apgd-ce", EPS, STEPS), seeding.mix(0, torch.arange(NUM)))
    assert seen.start is not None
    authors = reference.APGDAttack(classifier, n_iter=STEPS, norm="Linf", eps=EPS, loss="ce", device="cpu")
    authors.init_hyperparam(images)
    theirs, *_ = authors.attack_single_run(images, labels, x_init=seen.start)

    with torch.no_grad():
        our_logits, their_logits = classifier(ours), classifier(theirs)
    our_holds, their_holds = (logits.argmax(dim=1) == labels for logits in (our_logits, their_logits))
    our_loss, their_loss = (float(cross_entropy(logits, labels).mean()) for logits in (our_logits, their_logits))
    print(f"survivors {int(our_holds.sum())} and {int(their_holds.sum())}, loss {our_loss:.4f} and {their_loss:.4f}")
    assert 0.2 < their_holds.float().mean() < 0.8
    assert abs(int(our_holds.sum()) - int(their_holds.sum())) <= 0.005 * NUM
    assert (our_holds == their_holds).float().mean() >= 0.98
    assert our_loss == pytest.approx(their_loss, rel=1e-3)
