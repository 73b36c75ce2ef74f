"""The result of a search, read from its output folder, and the files made from it: `trials.parquet` and `best.yaml`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from maep import config, registry, storage
from maep.errors import ArtifactError, ConfigError, DataError
from maep.evaluate.results import rows
from maep.evaluate.results.summary import interval
from maep.tune import pareto
from maep.tune.config import TuneConfig
from maep.tune.metrics import estimates
from maep.tune.record import SEARCH, TrialRecord, read_all
from maep.tune.report import maps
from maep.tune.search.space import Axis

TABLE = "trials.parquet"
BEST = "best.yaml"
_TEXTS = ("reason", "artifact")
"""Text columns, even where no trial has a value."""
PHASES = ("pretrain", "finetune")
"""The sections of best.yaml, named after the verb that takes them."""


@dataclass(frozen=True)
class SearchResult:
    """A search in `folder`: its configuration and the trials that have ended (at least one), by number."""

    folder: Path
    config: TuneConfig
    trials: list[TrialRecord]

    @cached_property
    def space(self) -> dict[str, Axis]:
        """The space of the search; if all settings were fixed, the values of the most common keys."""
        if self.config.space:
            return self.config.space
        kinds = Counter(tuple(key for key in trial.settings if key != maps.SEED) for trial in self.trials)
        usual, _ = kinds.most_common(1)[0]
        alike = [trial.settings for trial in self.trials if trial.settings.keys() - {maps.SEED} == set(usual)]
        return {key: maps.choice([settings[key] for settings in alike]) for key in usual}

    @cached_property
    def objectives(self) -> list[str]:
        """The objectives of the search, then the others that were measured."""
        asked: list[str] = [name for name in self.config.objectives if name in estimates.measured(self.trials)]
        return [*asked, *(name for name in estimates.measured(self.trials) if name not in asked)]

    @cached_property
    def best(self) -> TrialRecord | None:
        """The best trial by the first objective within the limits; None where there is none."""
        try:
            return pareto.best(self.trials, self.config.objectives[0], self.config.limits)
        except ConfigError:
            return None

    @cached_property
    def front(self) -> list[TrialRecord]:
        """The Pareto front of the objectives of the search."""
        return pareto.front(self.trials, self.config.objectives)

    def count(self, status: str) -> int:
        """How many trials ended with this status."""
        return sum(trial.status == status for trial in self.trials)


def read(folder: str | Path) -> SearchResult:
    """The search in `folder`. Raises DataError where there is none, or where no trial has ended."""
    path = Path(folder) / SEARCH
    if not path.is_file():
        raise DataError(f"{folder} holds no {SEARCH}: it is not an output of maep tune, or the search has not started")
    settings = config.load(TuneConfig, path)
    trials = read_all(Path(folder))
    if not trials:
        raise DataError(
            f"no trial of the search in {folder} has ended: resume it with maep tune --output {folder} --resume"
        )
    return SearchResult(Path(folder), settings, trials)


def write(result: SearchResult) -> list[Path]:
    """Writes trials.parquet, and best.yaml where there is a best trial; returns the paths."""
    written = [result.folder / TABLE]
    storage.write_bytes(written[0], rows.encode(table(result.trials)))
    if result.best is not None:
        written.append(result.folder / BEST)
        storage.write_bytes(written[1], best_yaml(result, result.best).encode())
    return written


def table(trials: Sequence[TrialRecord]) -> pa.Table:
    """One row per trial: `trial_id`, then a column for each setting, objective, interval and cost.

    Settings of mixed types, or other than numbers, booleans and text, are written as JSON.
    """
    every = [_row(trial) for trial in trials]
    columns = {name: [row.get(name) for row in every] for name in dict.fromkeys(name for row in every for name in row)}
    for name, values in columns.items():
        if name.startswith("settings.") and not _one_kind(values):
            columns[name] = [None if value is None else json.dumps(value) for value in values]
    return pa.table({name: _column(name, values) for name, values in columns.items()})


def best_yaml(result: SearchResult, trial: TrialRecord) -> str:
    """The configuration of `trial`, with a section for each verb."""
    sections = {name: trial.configuration[name] for name in PHASES if trial.configuration.get(name)}
    objective = result.config.objectives[0]
    reached = estimates.estimate(trial, objective)
    head = [
        f"# Trial {trial.number} ({trial.trial_id}), best of {len(result.trials)} by {objective}:",
        f"# {estimates.with_unit(reached, objective)}, optimistic: the same dev images selected it. Settings:",
        *(f"#   {key}: {json.dumps(value)}" for key, value in trial.settings.items()),
        *(f"# maep {name} --config {result.folder / BEST} takes the section {name}" for name in sections),
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)


def winner(result: SearchResult) -> tuple[TrialRecord, Path]:
    """The best trial and the folder of its purifier.

    Raises ConfigError where there is no best trial, ArtifactError where its purifier was not kept.
    """
    if result.best is None:
        pareto.best(result.trials, result.config.objectives[0], result.config.limits)  # raises, with the reason
    assert result.best is not None
    if result.best.artifact is None:
        raise ArtifactError(f"trial {result.best.trial_id} of {result.folder} kept no purifier: train it from {BEST}")
    return result.best, result.folder / result.best.artifact


def _row(trial: TrialRecord) -> dict[str, Any]:
    row: dict[str, Any] = {
        "trial_id": trial.trial_id,
        "number": trial.number,
        "seed": trial.seed,
        "status": trial.status,
        "reason": trial.reason,
    }
    row |= {f"settings.{key}": value for key, value in trial.settings.items()}
    for name in _metrics(trial):
        row[name] = trial.objectives.get(name)
        if name in trial.counts:
            right, count = trial.counts[name]
            low, high = interval(right, count)
            row |= {f"{name}.low": low, f"{name}.high": high, f"{name}.right": right, f"{name}.images": count}
    row |= {name: getattr(trial.budget, name) for name in ("samples_seen", "flops", "core_seconds")}
    row |= {"started": trial.started, "ended": trial.ended, "artifact": trial.artifact}
    return {**row, "configuration": json.dumps(trial.configuration)}


def _metrics(trial: TrialRecord) -> list[str]:
    """The repository's metrics, measured or not, then other metrics that were measured."""
    return list(dict.fromkeys([*registry.metrics.names(plug_ins=False), *trial.objectives]))


def _one_kind(values: Sequence[Any]) -> bool:
    kinds = {type(value) for value in values if value is not None}
    return kinds == {int, float} or (len(kinds) == 1 and kinds <= {bool, int, float, str})


def _column(name: str, values: Sequence[Any]) -> pa.Array:
    is_float = name in registry.metrics.names() or {type(value) for value in values} >= {int, float}
    return pa.array(values, pa.float64() if is_float else pa.string() if name in _TEXTS else None)
