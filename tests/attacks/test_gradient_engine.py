"""The engine: full batches of few shapes, and no image is evaluated twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.attacks.gradient_engine import batch_sizes
from maep.attacks.run import attack

NUM, SLOTS, STEPS = 40, 8, 6


class Toy(nn.Module):
    """Three classes; an image of brightness b stays right for about b / step brightening steps. Counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        level = images.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - level, level - 0.5, torch.full_like(level, -2)], dim=1)


def images_and_labels() -> tuple[Tensor, Tensor]:
    """Every second image is near the boundary: it is broken after one to seven passes. The others are never broken."""
    levels = torch.where(torch.arange(NUM) % 2 == 0, torch.linspace(0.39, 0.49, NUM), 0.2)
    return levels.view(-1, 1, 1, 1).expand(NUM, 3, 2, 2).clone(), torch.zeros(NUM, dtype=torch.int64)


def run(model: nn.Module, stop: bool, batch_size: int | None, name: str = "pgd") -> Tensor:
    images, labels = images_and_labels()
    config = AttackConfig(name, 0.12, STEPS, 0.02 if name == "pgd" else None, random_start=False)
    return attack(model, images, labels, config, seeding.mix(0, torch.arange(NUM)), stop, batch_size)


def test_batches_stay_full_while_images_wait() -> None:
    model, alone = Toy(), Toy()
    refilled = run(model, True, SLOTS)
    torch.testing.assert_close(refilled, run(alone, True, 1))
    needed = len(alone.sizes)  # what each image needs by itself
    full = model.sizes.count(SLOTS)
    assert full * SLOTS >= 0.75 * needed
    assert sum(model.sizes) <= needed + SLOTS * (STEPS + 1)  # empty slots: only at the end
    assert model.sizes == sorted(model.sizes, reverse=True)
    assert set(model.sizes) <= {8, 6, 4, 3, 2, 1}


def test_full_budget_uses_one_batch_shape_and_no_extra_pass() -> None:
    model = Toy()
    run(model, False, SLOTS)
    assert model.sizes == [SLOTS] * (NUM // SLOTS * (STEPS + 1))


def test_targets_of_an_image_share_its_slot() -> None:
    """An image leaves at the first target that breaks it; one that is never broken runs through both."""
    model = Toy()
    attacked = run(model, True, 1, "apgd-t")
    falls = Toy()(attacked).argmax(dim=1) != 0
    assert falls[::2].all()
    assert not falls[1::2].any()
    tried = len(model.sizes) - NUM - 2 * (STEPS + 1) * int((~falls).sum())
    assert int(falls.sum()) <= tried <= (STEPS + 1) * int(falls.sum())  # not one look at the second target


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd-cw", "apgd-ce", "apgd-dlr", "apgd-t"])
@pytest.mark.parametrize("stop", [False, True])
def test_channels_last_is_kept(name: str, stop: bool) -> None:
    class Strict(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.is_contiguous(memory_format=torch.channels_last)
            level = images.mean(dim=(1, 2, 3))
            return torch.stack([level, 1 - level, level.sin(), -level], dim=1)

    images = torch.rand(9, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    labels = Strict()(images).argmax(dim=1)
    for norm in ("Linf",) if name == "fgsm" else ("Linf", "L2", "L1"):
        config = AttackConfig(name, 0.3, 10, norm=norm)
        attacked = attack(Strict(), images, labels, config, seeding.mix(0, torch.arange(9)), stop, 4)
        assert attacked.is_contiguous(memory_format=torch.channels_last)


def test_batches_shrink_in_few_sizes() -> None:
    assert [batch_sizes(64, needed) for needed in (64, 49, 48, 33, 32, 24, 17, 9, 3, 1, 0)] == [
        64, 64, 48, 48, 32, 24, 24, 12, 3, 1, 1,
    ]  # fmt: skip
    for size in range(1, 130):
        sizes = {batch_sizes(size, needed) for needed in range(size + 1)}
        assert all(batch_sizes(size, needed) >= max(needed, 1) for needed in range(size + 1))
        assert len(sizes) <= 2 * size.bit_length() + 1
