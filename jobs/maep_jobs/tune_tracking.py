"""A search in MLflow: a parent run, and a child for each trial, with what was measured by images seen.

All of it is written by the process of the search, from what its trials left: a trial that is killed leaves no run open,
and a search that is gone on with finds its runs again by their keys.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from maep import config, storage
from maep.errors import Stopped
from maep.tracking.client import TrackingConfig
from maep.tracking.runs import PARENT, Run, Status, close_left, open_run
from maep.tune import record
from maep.tune.config import TuneConfig
from maep.tune.record import SEARCH, Point, TrialRecord
from maep.tune.search import Work
from maep.tune.trial import Trial

KEY = "run-key"


class Tracked:
    """A listener of a search. Entered while it runs; what is then still open ends with it."""

    def __init__(self, settings: TuneConfig, tracking: TrackingConfig, output: Path) -> None:
        self._settings, self._tracking, self._output = settings, tracking, output
        self._children: dict[int, Run] = {}
        self._recorded: set[str] = set()
        self._images = 0

    def __enter__(self) -> Self:
        """Raises UnavailableError where no tracking server answers."""
        path = self._output / KEY
        if not path.is_file():
            storage.write_bytes(path, uuid.uuid4().hex.encode())
        self._key = path.read_text(encoding="ascii")
        name, params = f"tune {self._output.name}", config.to_dict(self._settings)
        self._parent = open_run(self._tracking, name, self._key, params, {"maep.phase": "tune"})
        if self._parent.run_id is not None:
            self._recorded = close_left(self._tracking, self._parent.run_id)  # what goes on is opened again
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_killed = isinstance(error, KeyboardInterrupt | SystemExit | Stopped)
        status: Status = "FINISHED" if error is None else "KILLED" if is_killed else "FAILED"
        for child in self._children.values():
            child.finish("KILLED")
        if (self._output / SEARCH).is_file():
            self._parent.log_file(self._output / SEARCH)
        self._parent.finish(status)

    def on_start(self, work: Work) -> None:
        """Opens the trial's run."""
        if work.rung is not None:
            self._child(work.trial)

    def on_point(self, trial: Trial, point: Point) -> None:
        """Logs what was measured."""
        if self._key_of(trial) in self._recorded:
            return
        spent = {"flops": point.budget.flops, "core_seconds": point.budget.core_seconds}
        self._child(trial).log_metrics({**point.objectives, **spent}, point.samples_seen)

    def on_end(self, trial: Trial, ended: TrialRecord) -> None:
        """Ends the trial's run, with its record, and logs the search's own course: the trial's values by all images."""
        if self._key_of(trial) not in self._recorded:
            child = self._child(trial)
            child.log_file(record.folder(self._output, trial.trial_id) / record.TRIAL)
            child.finish("FAILED" if ended.status == "failed" else "FINISHED")
            del self._children[trial.number]
        self._images += ended.budget.samples_seen
        self._parent.log_metrics(ended.objectives, self._images)

    def _child(self, trial: Trial) -> Run:
        if trial.number not in self._children:
            tags = {"maep.phase": "trial", "maep.trial_id": trial.trial_id}
            if self._parent.run_id is not None:
                tags[PARENT] = self._parent.run_id
            name = f"trial {trial.trial_id}"
            params = {**trial.settings, "seed": trial.seed}
            self._children[trial.number] = open_run(self._tracking, name, self._key_of(trial), params, tags)
        return self._children[trial.number]

    def _key_of(self, trial: Trial) -> str:
        return f"{self._key}-{trial.trial_id}"
