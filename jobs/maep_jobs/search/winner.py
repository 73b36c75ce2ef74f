"""From a finished search to the alias `champion`: its best purifier through the full evaluation and the gate.

The search has chosen among many trials, on few images and a quick attack. The gate measures the one it chose anew, on
the gate's list of images and budgets, against the champion: nothing of the search's own figures decides. Both are of
`dev`, so some of the gate's images may be among those that chose; `maep evaluate` measures on `test`.
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
from maep.tune.results import Result, winner
from maep_jobs import report
from maep_jobs.arguments import Parser, find
from maep_jobs.pipeline.gate import Verdict, folder_of, send_through_gate
from maep_jobs.verbs.promote import PromoteConfig

FOLDER = "promote"
"""Below the search's output: the evaluations that the gate decided on."""


@dataclass(frozen=True)
class Promoted:
    """What became of the winner: which trial it is, the gate's verdict, and the page of its evaluation (None where it
    was the champion already, and nothing was measured).
    """

    trial_id: str
    verdict: Verdict
    report: Path | None

    @property
    def values(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"trial_id": self.trial_id, **asdict(self.verdict), "report": self.report and str(self.report)}

    @property
    def lines(self) -> list[str]:
        """For people."""
        said = f"trial {self.trial_id}, purifier version {self.verdict.version}:"
        shown = [f"report: {self.report}"] if self.report else []
        word = "champion" if self.verdict.champion else "refused"
        return [f"{said} {word}", *(f"  {reason}" for reason in self.verdict.reasons), *shown]


def add_options(made: Parser) -> None:
    """The options of `maep tune` that promote its winner."""
    made.add_argument(
        "--promote",
        nargs="?",
        const="",
        metavar="NAME|FILE",
        help="afterwards send the best purifier through the gate of this configuration (default: DATA/promote)",
    )
    made.add_argument("--force", action="store_true", help="with --promote: also what the gate refuses; recorded")


def gate_settings(name: str, data: str, tracking: TrackingConfig) -> PromoteConfig:
    """The configuration of `maep promote` called `name`, of `DATA/promote` where that is empty.

    Its section `tracking` is left aside: the search's own says which registered model the winner is for. Raises
    ConfigError where it is none, or where there is no registry, so call this before hours of search.
    """
    if not tracking.enabled:
        raise ConfigError("--promote: ends in the registry, which needs tracking: leave tracking.enabled true")
    values = config.read_yaml(find(name or f"{data}/promote", "--promote"))
    values.pop("tracking", None)
    return config.build(PromoteConfig, values)


def promote_winner(
    result: Result,
    settings: PromoteConfig,
    tracking: TrackingConfig,
    trained: Mapping[str, Path] | None = None,
    force: bool = False,
    command: str = "",
) -> Promoted:
    """Sends the search's best purifier through the gate, and notes on its version which search it comes from.

    `trained` are the classifiers that the search has trained itself, by name. An endpoint that serves the alias follows
    it; nothing is restarted from here. Raises ConfigError or ArtifactError, with the reason, where no trial is best.
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
    return Promoted(best.trial_id, verdict, page)


def gate_classifiers(result: Result, settings: PromoteConfig, trained: Mapping[str, Path]) -> tuple[str, ...]:
    """The classifiers that the gate decides on: those that `settings` names, where the search has not trained its own.

    Of its own it takes those that `settings` names, else those that no trial was trained with, else all.
    """
    named = settings.evaluate.classifiers
    if any(name in trained for name in named) or not trained:
        return tuple(str(trained.get(name, name)) for name in named)
    seen = set(result.config.finetune.classifiers)
    unseen = [path for name, path in trained.items() if not seen & {name, str(path), str(path.absolute())}]
    return tuple(str(path) for path in unseen or trained.values())
