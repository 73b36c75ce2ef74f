from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from maep.train.config import LoopConfig
from maep.train.loop.optimizers import Muon, learning_rate, make_optimizer, orthogonalised, set_learning_rate

LOOP = LoopConfig(optimizer="muon", lr=0.04, sgd_lr=0.02, weight_decay=0.1, momentum=0.9, warmup=0.0, decay="linear")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12)])
def test_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix)
    assert torch.linalg.svdvals(found).max() < 1.3
    assert torch.linalg.svdvals(found).median() > 0.6
    assert (found * (left @ right)).sum() > 0.7 * min(shape)


def test_all_but_kernels_follow_torchs_sgd() -> None:
    ours, theirs = network(), network()
    muon = make_optimizer(ours, LOOP)
    set_learning_rate(muon, LOOP.lr)
    kernel, *others = theirs.parameters()
    sgd = torch.optim.SGD(others, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1)
    for seed in range(4):
        with torch.no_grad():
            kernel.copy_(next(ours.parameters()))
        step(ours, muon, seed)
        step(theirs, sgd, seed)
    for mine, reference in zip([*ours.parameters()][1:], others, strict=True):
        torch.testing.assert_close(mine, reference)


def test_kernels_keep_their_norm_within_a_step() -> None:
    model = network()
    optimizer = make_optimizer(model, LOOP)
    for seed in range(3):
        step(model, optimizer, seed)
        kernel = next(model.parameters())
        assert float(kernel.detach().norm()) == pytest.approx(8**0.5, rel=0.06)  # lr 0.04, and a step of norm sqrt(8)


def test_state_restores_the_run() -> None:
    model = network()
    optimizer = make_optimizer(model, LOOP)
    step(model, optimizer, 0)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    step(model, optimizer, 1)
    other = network()
    other.load_state_dict(weights)
    restored = make_optimizer(other, LOOP)
    restored.load_state_dict(state)
    step(other, restored, 1)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))


def test_each_group_gets_its_share_of_the_rate() -> None:
    optimizer = make_optimizer(network(), LOOP)
    assert isinstance(optimizer, Muon)
    set_learning_rate(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.005])


@pytest.mark.parametrize(("decay", "half"), [("linear", 0.02), ("cosine", 0.02)])
def test_learning_rate_falls_to_zero(decay: str, half: float) -> None:
    loop = LoopConfig(lr=0.04, warmup=0.0, decay=decay)  # type: ignore[arg-type]
    assert learning_rate(0.5, loop) == pytest.approx(half)
    assert learning_rate(1.0, loop) == pytest.approx(0.0, abs=1e-9)
    quarter = {"linear": 0.03, "cosine": 0.02 * (1 + 2**-0.5)}[decay]
    assert learning_rate(0.25, loop) == pytest.approx(quarter)
