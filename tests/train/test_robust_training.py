"""Training of a robust purifier: its encoder, its decoder, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import Heard, Make, batch_at, weights

from maep.errors import ConfigError
from maep.train.build_tasks import purification
from maep.train.loop.run import run
from maep.train.objectives import Purification
from maep.train.validation import validate

MODEL = {"name": "robust", "image_size": 16, "encoder_channels": [4, 8], "decoder_width": 8, "decoder_blocks": 1}
ATTACKS = {
    "mode": "trained",
    "mixture": [{"name": "n-fgsm", "share": 1.0}],
    "eps_range": ["4/255", "16/255"],
    "schedule": [[0, 0], [0.5, 1]],
}
ENCODER: dict[str, Any] = {
    "model": MODEL,
    "part": "encoder",
    "attacks": ATTACKS,
    "noise": 0,
    "loss": {"pixel": {"weight": 0}, "kl": {"weight": 0}, "head": {"weight": 1, "label_smoothing": 0.1}},
}
DECODER: dict[str, Any] = ENCODER | {
    "part": "decoder",
    "true_verdicts": 0.5,
    "attacks": ATTACKS | {"mixture": [{"name": "pgd", "share": 0.5, "steps": [1, 2]}, {"name": "none", "share": 0.5}]},
    "loss": {"pixel": {"weight": 15}, "pixel_norm": "rms", "kl": {"weight": 0}, "label": {"weight": 1}},
}
WHOLE: dict[str, Any] = ENCODER | {
    "part": "all",
    "loss": {
        "pixel": {"weight": 1},
        "kl": {"weight": 0},
        "label": {"weight": 1, "temperature": 5},
        "head": {"weight": 2},
    },
}
MUON = {"optimizer": "muon", "lr": 0.02, "decay": "linear", "ema": 0.9}
PARTS = {"encoder": ENCODER, "decoder": DECODER, "all": WHOLE}


def objective(finetune: Make, values: dict[str, Any]) -> Purification:
    found = purification(finetune(values)).objective
    assert isinstance(found, Purification)
    return found


@pytest.mark.parametrize("part", PARTS)
def test_only_the_part_is_trained(part: str, finetune: Make, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in objective(finetune, PARTS[part]).model.state_dict().items()}
    after = run(purification(finetune(PARTS[part])), tmp_path).weights()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"encoder", "decoder"} if part == "all" else {part})


@pytest.mark.parametrize("part", ["encoder", "all"])
def test_killed_and_resumed_run_ends_on_the_same_bits(part: str, finetune: Make, tmp_path: Path) -> None:
    settings = finetune(PARTS[part], **MUON)
    whole = weights(run(purification(settings), tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(purification(settings), tmp_path / "killed", [Heard(stop_after_checkpoints=2)])
    assert weights(run(purification(settings), tmp_path / "killed")) == whole


def test_every_image_has_a_budget_of_its_own_that_follows_the_schedule(finetune: Make) -> None:
    found = objective(finetune, ENCODER)
    task = purification(finetune(ENCODER))
    batch = batch_at(task)
    assert not found._budgets(batch).any()  # the start of the run
    last = found._budgets(batch_at(task, task.loop.num_steps - 1)).flatten()
    assert 4 / 255 <= last.min() < last.max() <= 16 / 255


def test_attacks_raise_the_loss_that_is_trained(finetune: Make) -> None:
    values = ENCODER | {"attacks": ATTACKS | {"mixture": [{"name": "pgd", "steps": [3, 3]}], "schedule": []}}
    task = purification(finetune(values))
    found, batch = task.objective, batch_at(task)
    assert isinstance(found, Purification)
    found.train()
    crafted = found.craft(batch)
    assert crafted.attacked is not None
    found.model.eval()
    with torch.no_grad():
        assert found._losses(crafted.attacked, batch).loss > found._losses(batch.images, batch).loss


def test_decoder_is_given_the_true_class_on_its_share(finetune: Make) -> None:
    for share in (0.0, 1.0):
        task = purification(finetune(DECODER | {"true_verdicts": share}))
        assert isinstance(task.objective, Purification)
        batch = batch_at(task)
        same = (task.objective._verdicts(batch) == batch.labels).float().mean()
        assert same == 1 if share else same < 0.6


def test_validation_measures_the_head(finetune: Make, tmp_path: Path) -> None:
    settings = finetune(ENCODER | {"validation": {"num_images": 16, "steps": 2}})
    found = validate(run(purification(settings), tmp_path).folder, settings)
    assert {"dev_head_clean", "dev_head_fgsm", "dev_head_robust"} <= found.keys()
    assert found["dev_head_robust"] <= found["dev_head_clean"] + 0.2


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"part": "encoder", "model": {"name": "conv", "image_size": 16, "channels": [4], "blocks": 1}}, "part"),
        ({"true_verdicts": 0.5}, "true_verdicts"),
        ({"part": "decoder", "true_verdicts": 1.5}, "true_verdicts"),
        ({"part": "decoder"}, "loss.head"),
        ({"attacks": ATTACKS | {"schedule": [[0.5, 1], [0.2, 0]]}}, "schedule"),
        ({"attacks": ATTACKS | {"mode": "adaptive"}}, "attacks.mode"),
        ({"attacks": ATTACKS | {"mixture": [{"name": "fgsm"}]}}, "mixture"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, Any], key: str, finetune: Make) -> None:
    with pytest.raises(ConfigError, match=key):
        finetune(ENCODER | values)
