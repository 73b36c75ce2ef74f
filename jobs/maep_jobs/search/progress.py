"""The progress of a search on standard error: a line for each event of a trial."""

from __future__ import annotations

import sys

from maep.tune.config import TuneConfig
from maep.tune.record import RungResult, TrialRecord
from maep.tune.search import suggest
from maep.tune.search.rounds import Listener, WorkItem
from maep.tune.search.space import setting_text
from maep.tune.trial.trial import Trial


class SearchProgress(Listener):
    """Prints when a trial starts, is measured and ends."""

    def __init__(self, settings: TuneConfig) -> None:
        self._objectives = settings.objectives
        self._total = suggest.most_trials(settings)
        self._ended = 0

    def on_start(self, item: WorkItem) -> None:
        """Prints which work starts."""
        self._say(item.name, "started", setting_text(item.trial.settings))

    def on_rung(self, trial: Trial, result: RungResult) -> None:
        """Prints what was measured."""
        self._say(trial.trial_id, "measured", setting_text(trial.settings), *self._measured(result))

    def on_end(self, trial: Trial, ended: TrialRecord) -> None:
        """Prints how the trial ended, and why."""
        self._ended += 1
        status = f"{ended.status}: {ended.reason}" if ended.reason else ended.status
        last = RungResult(ended.budget.samples_seen, ended.objectives, ended.counts, ended.budget)
        self._say(trial.trial_id, status, setting_text(trial.settings), *self._measured(last))

    def _measured(self, result: RungResult) -> list[str]:
        values = [f"{name} {result.objectives[name]:.4g}" for name in self._objectives if name in result.objectives]
        return [f"{result.samples_seen:,} images", *values]

    def _say(self, *parts: str) -> None:
        print(f"tune  {self._ended}/{self._total}", *parts, sep="  ", file=sys.stderr, flush=True)
