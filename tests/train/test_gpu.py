"""Both phases on a CUDA device: draws, masks and attacks must stay on the device."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_toys import Heard, Make

from maep.train.build_tasks import pretraining, purification
from maep.train.loop.run import run

pytestmark = pytest.mark.gpu


def test_pretraining_learns_on_a_gpu(pretrain: Make, tmp_path: Path) -> None:
    heard = Heard()
    run(pretraining(pretrain(device="cuda", augment=True)), tmp_path, [heard])
    assert heard.steps[-1].metrics["loss"] < heard.steps[0].metrics["loss"]


@pytest.mark.parametrize("mode", ["oblivious", "adaptive"])
def test_finetuning_takes_steps_on_a_gpu(mode: str, finetune: Make, tmp_path: Path) -> None:
    heard = Heard()
    attacks = {"mode": mode, "eps": "32/255"}
    settings = finetune({"attacks": attacks, "noise": 0.1, "loss": {"masked": {"weight": 1}}}, device="cuda")
    run(purification(settings), tmp_path, [heard])
    assert heard.steps[-1].samples_seen == heard.steps[-1].samples
