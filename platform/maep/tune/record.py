"""The record of each trial in a search's output: `trials/<trial_id>/trial.json`, written atomically at its end.

A trial without that file has not ended. Beside it, `curve.jsonl` has one line per rung at which the trial was measured.
Best trial, Pareto front, maps and importances are computed from these two files alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maep import config, storage
from maep.errors import ArtifactError, ConfigError

Status = Literal["done", "stopped", "failed"]
"""Trained to the last rung; stopped early by successive halving; failed, with a reason."""

SEARCH = "search.yaml"
TRIALS = "trials"
TRIAL = "trial.json"
CURVE = "curve.jsonl"


@dataclass(frozen=True)
class Budget:
    """What a trial has spent; a pretraining shared by several trials counts in full for each."""

    samples_seen: int
    """Images in training steps of pretraining and fine-tuning."""
    flops: float
    """Floating-point operations of those steps."""
    core_seconds: float
    """Processor seconds of the training, without measuring."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial that has ended."""

    trial_id: str
    """Made from number and settings, so the same search makes the same ids."""
    number: int
    """From 0, in the order in which settings were chosen."""
    seed: int
    status: Status
    reason: str | None
    """Why it failed or was stopped; None if done."""
    settings: dict[str, Any]
    """Key of the space (`mask_ratio`, `finetune.loop.lr`) -> value."""
    objectives: dict[str, float]
    """At the last rung it reached: the objectives of the search, and always clean_accuracy and num_parameters; empty
    where it failed before the first rung."""
    counts: dict[str, tuple[int, int]]
    """Name of an accuracy -> correct images and all images, for intervals."""
    budget: Budget
    started: str
    """ISO 8601, UTC; the first start of a trial that was resumed."""
    ended: str
    artifact: str | None
    """The trained purifier, relative to the output of the search; None where there is none."""
    configuration: dict[str, Any]
    """`pretrain` and `finetune`: the resolved sections that those verbs take."""


@dataclass(frozen=True)
class RungResult:
    """What was measured at one rung: a line of the curve."""

    samples_seen: int
    objectives: dict[str, float]
    counts: dict[str, tuple[int, int]]
    budget: Budget


def folder(output: Path, trial_id: str) -> Path:
    """The folder of a trial."""
    return output / TRIALS / trial_id


def write(output: Path, record: TrialRecord) -> None:
    """Writes the record atomically."""
    text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
    storage.write_bytes(folder(output, record.trial_id) / TRIAL, text.encode())


def read(path: Path) -> TrialRecord:
    """The record in file `path`. Raises ArtifactError where it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return config.build(TrialRecord, values)
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, ConfigError) else "not readable"
        raise ArtifactError(
            f"{path} is not the record of a trial ({reason}): start the search again with another --output"
        ) from None


def read_all(output: Path) -> list[TrialRecord]:
    """The trials of the search in `output` that have ended, by number."""
    found = [read(path) for path in (output / TRIALS).glob(f"*/{TRIAL}")]
    return sorted(found, key=lambda record: record.number)


def append(output: Path, trial_id: str, result: RungResult) -> None:
    """Adds a line to the trial's curve, unless it already has one at this number of images."""
    if any(known.samples_seen == result.samples_seen for known in curve(output, trial_id)):
        return
    path = folder(output, trial_id) / CURVE
    before = path.read_bytes() if path.is_file() else b""
    storage.write_bytes(path, before + json.dumps(dataclasses.asdict(result)).encode() + b"\n")


def curve(output: Path, trial_id: str) -> list[RungResult]:
    """What was measured at each rung of the trial, in order."""
    path = folder(output, trial_id) / CURVE
    if not path.is_file():
        return []
    lines: list[Mapping[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [config.build(RungResult, line) for line in lines]
