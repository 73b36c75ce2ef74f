"""Sends the best purifier of a finished search through the gate; if it passes, it becomes `champion`.

A search selects among many trials with few images and a quick attack. The gate measures the winner again with its own
images and budgets, and compares it with the champion. Both use `dev` images, so some of the gate's may have selected
the winner; `maep evaluate` measures on `test`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maep import artifact, config
from maep.errors import ConfigError
from maep.evaluate.results.gate import evaluation
from maep.evaluate.results.summary import RESULT, read
from maep.tracking.client import TrackingConfig, absolute
from maep.tracking.registry import register
from maep.tune.results import SearchResult, winner
from maep_jobs import report
from maep_jobs.config_files import find
from maep_jobs.pipeline.config import PromoteConfig
from maep_jobs.pipeline.gate import Verdict, folder_of, send_through_gate

FOLDER = "promote"
"""Under the output of the search: the evaluations that the gate decided on."""


@dataclass(frozen=True)
class Promotion:
    """The winning trial, the gate's verdict, and the page of its evaluation (None if it was the champion already)."""

    trial_id: str
    verdict: Verdict
    report: Path | None

    @property
    def values(self) -> dict[str, Any]:
        """As JSON."""
        return {"trial_id": self.trial_id, **asdict(self.verdict), "report": self.report and str(self.report)}

    @property
    def lines(self) -> list[str]:
        """As lines of text."""
        said = f"trial {self.trial_id}, purifier version {self.verdict.version}:"
        shown = [f"report: {self.report}"] if self.report else []
        word = "champion" if self.verdict.champion else "refused"
        return [f"{said} {word}", *(f"  {reason}" for reason in self.verdict.reasons), *shown]


def gate_settings(name: str, data: str, tracking: TrackingConfig) -> PromoteConfig:
    """The configuration of `maep promote` called `name`, or `DATA/promote` where that is empty.

    Its section `tracking` is ignored: the search names the registered model. Raises ConfigError for an invalid
    configuration or without a registry; call it before the search, which takes hours.
    """
    if not tracking.enabled:
        raise ConfigError("--promote: needs the model registry: set tracking.enabled true")
    values = config.read_yaml(find(name or f"{data}/promote", "--promote"))
    values.pop("tracking", None)
    return config.build(PromoteConfig, values)


def promote_winner(
    result: SearchResult,
    settings: PromoteConfig,
    tracking: TrackingConfig,
    trained: Mapping[str, Path] | None = None,
    force: bool = False,
    command: str = "",
) -> Promotion:
    """Sends the best purifier of the search through the gate, and records the search on its registered version.

    `trained` has the classifiers that the search trained itself, by name. An endpoint that serves the alias follows it.
    Raises ConfigError or ArtifactError where there is no best trial or its purifier was not kept.
    """
    best, folder = winner(result)
    candidate = artifact.read(folder)
    tracking = absolute(tracking)
    named = gate_classifiers(result, settings, trained or {})
    base = dataclasses.replace(settings.evaluate, classifiers=named)
    verdict = send_through_gate(candidate, base, settings.gate, tracking, result.folder / FOLDER, force)
    source = {"folder": result.folder.name, "trial_id": best.trial_id, "num_trials": len(result.trials)}
    register(tracking, candidate, evaluation={"search": {**source, "objectives": best.objectives}})
    measured = evaluation(settings.gate, base)
    where = folder_of(result.folder / FOLDER, "candidate", candidate, measured)
    shown = (where / RESULT).is_file()
    page = report.write(read(where), measured, {"purifier": candidate}, command) if shown else None
    return Promotion(best.trial_id, verdict, page)


def gate_classifiers(result: SearchResult, settings: PromoteConfig, trained: Mapping[str, Path]) -> tuple[str, ...]:
    """The classifiers that the gate uses: those that `settings` names, unless the search trained its own.

    Of its own, those that `settings` names, else those that no trial trained with, else all.
    """
    named = settings.evaluate.classifiers
    if any(name in trained for name in named) or not trained:
        return tuple(str(trained.get(name, name)) for name in named)
    seen = set(result.config.finetune.classifiers)
    unseen = [path for name, path in trained.items() if not seen & {name, str(path), str(path.absolute())}]
    return tuple(str(path) for path in unseen or trained.values())
