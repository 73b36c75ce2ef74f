"""What a search leaves of each trial in its output: `trials/<trial_id>/trial.json`, written whole when the trial ends.

A trial without that file has not ended. Beside it lies `curve.jsonl`: what was measured on the way, a line a rung.
Everything else that is said of a search (best, front, maps, importance) is computed from these two, by anyone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from maep import config, storage
from maep.errors import ArtifactError, ConfigError

Status = Literal["done", "stopped", "failed"]
"""Trained to the last rung; stopped early at one (successive halving); failed, with a reason."""
Objective = Literal["clean_accuracy", "oblivious_accuracy", "adaptive_accuracy", "latency_ms", "num_parameters"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

SEARCH = "search.yaml"
TRIALS = "trials"
TRIAL = "trial.json"
CURVE = "curve.jsonl"


@dataclass(frozen=True)
class Budget:
    """What a trial has spent, measured; a pretraining that several trials share counts in full for each."""

    samples_seen: int
    """Images in training steps, of pretraining (in full, though it may be shared) and fine-tuning together."""
    flops: float
    """Floating-point operations of those steps."""
    core_seconds: float
    """Processor seconds of the training; measuring is not in them."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial, ended."""

    trial_id: str
    """From number and settings, so that the same search makes the same ids."""
    number: int
    """From 0, in the order in which the settings were chosen."""
    seed: int
    status: Status
    reason: str | None
    """Why it failed or was stopped; None where it is done."""
    settings: dict[str, Any]
    """Key as the space names it (`mask_ratio`, `patch_size`, `finetune.loop.lr`) -> value."""
    objectives: dict[str, float]
    """Of the last rung it was measured at: what `objectives` of the search names, and never less than clean_accuracy
    and num_parameters; empty where it failed before the first."""
    counts: dict[str, tuple[int, int]]
    """Name of an accuracy -> images right and images asked, for intervals."""
    budget: Budget
    started: str
    """ISO 8601, UTC; of the first start, where the trial went on after a kill."""
    ended: str
    artifact: str | None
    """The trained purifier, relative to the search's output; None where there is none."""
    configuration: dict[str, Any]
    """`pretrain` and `finetune`: the sections as those verbs take them, resolved."""


@dataclass(frozen=True)
class Point:
    """A line of the curve."""

    samples_seen: int
    objectives: dict[str, float]
    counts: dict[str, tuple[int, int]]
    budget: Budget


def folder(output: Path, trial_id: str) -> Path:
    """Where a trial's files lie."""
    return output / TRIALS / trial_id


def write(output: Path, record: TrialRecord) -> None:
    """Writes the record, whole or not at all."""
    text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
    storage.write_bytes(folder(output, record.trial_id) / TRIAL, text.encode())


def read(path: Path) -> TrialRecord:
    """The record in file `path`. Raises ArtifactError where it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return config.build(TrialRecord, values)
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, ConfigError) else "not readable"
        raise ArtifactError(f"{path} is no record of a trial ({reason}): the search has to be made anew") from None


def read_all(output: Path) -> list[TrialRecord]:
    """Every trial that has ended in the search at `output`, by number."""
    found = [read(path) for path in (output / TRIALS).glob(f"*/{TRIAL}")]
    return sorted(found, key=lambda record: record.number)


def append(output: Path, trial_id: str, point: Point) -> None:
    """Adds a line to the trial's curve, unless it has one of as many images already."""
    if any(known.samples_seen == point.samples_seen for known in curve(output, trial_id)):
        return
    path = folder(output, trial_id) / CURVE
    before = path.read_bytes() if path.is_file() else b""
    storage.write_bytes(path, before + json.dumps(dataclasses.asdict(point)).encode() + b"\n")


def curve(output: Path, trial_id: str) -> list[Point]:
    """What was measured of the trial on its way, by images seen; empty where nothing was yet."""
    path = folder(output, trial_id) / CURVE
    if not path.is_file():
        return []
    lines: list[Mapping[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [config.build(Point, line) for line in lines]
