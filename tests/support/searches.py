"""Output folders of searches, made by hand: a configuration, and a record for each trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maep import config, storage
from maep.tune import record
from maep.tune.config import TuneConfig
from maep.tune.record import Budget, TrialRecord

NUM_IMAGES = 500
AMOUNT = 40_000
MAE = {"image_size": [16, 16], "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "decoder_width": 16,
       "decoder_depth": 1, "decoder_heads": 2}  # fmt: skip
PRETRAIN = {
    "data": {"name": "digits"},
    "model": MAE,
    "mask_ratio": 0.5,
    "loop": {"samples": 320, "batch_size": 32, "augment": False, "device": "cpu"},
}
FINETUNE = {
    "data": {"name": "digits"},
    "model": {"name": "purifier", "mae": MAE, "stem_channels": [4, 4], "stem_blocks": 1},
    "classifiers": ["cifar10_resnet20"],
    "loop": {"samples": 320, "batch_size": 32, "augment": False, "device": "cpu"},
}
SPACE = {"mask_ratio": {"choice": [0.25, 0.5, 0.75]}, "patch_size": {"choice": [2, 4, 8]}}


def settings(**values: Any) -> TuneConfig:
    """The configuration of a search over mask ratio and patch size; `values` override."""
    usual = {
        "pretrain": PRETRAIN,
        "finetune": FINETUNE,
        "space": SPACE,
        "objectives": ["adaptive_accuracy"],
        "budget": {"amount": AMOUNT},
    }
    return config.build(TuneConfig, {**usual, **values})


def trial(
    number: int,
    values: Mapping[str, Any],
    adaptive: float | None = 0.4,
    status: record.Status = "done",
    spent: int = AMOUNT,
    reason: str | None = None,
    **objectives: float,
) -> TrialRecord:
    """A trial of `adaptive` accuracy on NUM_IMAGES images (None: it was never measured), and of further objectives."""
    reached = dict(objectives)
    if adaptive is not None:
        reached["adaptive_accuracy"] = adaptive
    counts = {name: (round(share * NUM_IMAGES), NUM_IMAGES) for name, share in reached.items() if "accuracy" in name}
    shares = {name: right / total for name, (right, total) in counts.items()}
    return TrialRecord(
        trial_id=f"{number:03d}-test",
        number=number,
        seed=int(values.get("seed", 0)),
        status=status,
        reason=reason,
        settings=dict(values),
        objectives={**reached, **shares},
        counts=counts,
        budget=Budget(spent, 2.0e6 * spent, spent / 1000),
        started=f"2026-01-01T00:{number:02d}:00+00:00",
        ended=f"2026-01-01T01:{number:02d}:00+00:00",
        artifact=None,
        configuration={"pretrain": PRETRAIN, "finetune": FINETUNE},
    )


def grid() -> list[TrialRecord]:
    """Nine cells of which (0.5, 4) is the best, a repeat of a corner, a trial that was stopped and one that failed."""
    cells = [(ratio, size) for ratio in (0.25, 0.5, 0.75) for size in (2, 4, 8)]
    shares = [0.38, 0.42, 0.30, 0.41, 0.45, 0.33, 0.36, 0.40, 0.22]
    made = [
        trial(i, {"mask_ratio": ratio, "patch_size": size}, share, latency_ms=8.0 / size + 0.1 * i, clean_accuracy=0.9)
        for i, ((ratio, size), share) in enumerate(zip(cells, shares, strict=True))
    ]
    made.append(trial(9, {"mask_ratio": 0.25, "patch_size": 2, "seed": 1}, 0.40, latency_ms=4.1, clean_accuracy=0.91))
    made[8] = dataclasses.replace(made[8], status="stopped", budget=Budget(10_000, 2e10, 10.0), reason="rung 1")
    failed = trial(10, {"mask_ratio": 0.75, "patch_size": 4}, None, "failed", 4_000, "loss is NaN at step 12")
    return [*made, failed]


def write(output: Path, trials: Iterable[TrialRecord], asked: TuneConfig | None = None) -> Path:
    """The output folder of a search that has made `trials`."""
    storage.write_bytes(output / record.SEARCH, config.to_yaml(asked or settings()).encode())
    for each in trials:
        record.write(output, each)
    return output
