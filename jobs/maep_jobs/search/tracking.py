"""A search in MLflow: a parent run and a child run per trial, with the objectives by images seen.

The search process writes all runs from the files of its trials: a killed trial leaves no open run, and a resumed search
finds its runs by their keys.
"""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from maep import config, storage
from maep.errors import Stopped, UnavailableError
from maep.tracking.client import TrackingConfig
from maep.tracking.runs import PARENT, Run, Status, close_left, open_run
from maep.tune import record
from maep.tune.config import TuneConfig
from maep.tune.record import SEARCH, RungResult, TrialRecord
from maep.tune.search.rounds import Listener, WorkItem
from maep.tune.trial.trial import Trial

KEY = "run-key"
_log = logging.getLogger("maep.tune")


class SearchTracker(Listener):
    """Records the search in MLflow; a context manager around the search, which ends open runs."""

    def __init__(self, settings: TuneConfig, tracking: TrackingConfig, output: Path) -> None:
        self._settings, self._tracking, self._output = settings, tracking, output
        self._children: dict[int, Run] = {}
        self._logged: dict[int, int] = {}
        self._recorded: set[str] = set()
        self._images = 0

    def __enter__(self) -> Self:
        """Opens the parent run. Raises UnavailableError where no tracking server answers."""
        path = self._output / KEY
        if not path.is_file():
            storage.write_bytes(path, uuid.uuid4().hex.encode())
        self._key = path.read_text(encoding="ascii")
        name, params = f"tune {self._output.name}", config.to_dict(self._settings)
        self._parent = open_run(self._tracking, name, self._key, params, {"maep.phase": "tune"})
        if self._parent.run_id is not None:
            self._recorded = close_left(self._tracking, self._parent.run_id)  # unfinished trials reopen theirs
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

    def on_start(self, item: WorkItem) -> None:
        """Opens the trial's run."""
        if item.rung is not None:
            self._child(item.trial)

    def on_rung(self, trial: Trial, result: RungResult) -> None:
        """Logs what was measured."""
        if (child := self._child(trial)) is not None:
            self._log_curve(child, trial)

    def on_end(self, trial: Trial, ended: TrialRecord) -> None:
        """Ends the trial's run, with its record, and logs its objectives to the parent, by images of all trials."""
        if (child := self._child(trial)) is not None:
            self._log_curve(child, trial)
            child.log_file(record.folder(self._output, trial.trial_id) / record.TRIAL)
            child.finish("FAILED" if ended.status == "failed" else "FINISHED")
            del self._children[trial.number]
        self._images += ended.budget.samples_seen
        self._parent.log_metrics(ended.objectives, self._images)

    def _child(self, trial: Trial) -> Run | None:
        """The trial's run; None if it is already recorded or no server answers.

        Without a server the search continues. The run opens at the next rung, at the trial's end, or with --resume:
        everything to record is in the output.
        """
        if self._key_of(trial) in self._recorded:
            return None
        if trial.number not in self._children:
            tags = {"maep.phase": "trial", "maep.trial_id": trial.trial_id}
            if self._parent.run_id is not None:
                tags[PARENT] = self._parent.run_id
            name = f"trial {trial.trial_id}"
            params = {**trial.settings, "seed": trial.seed}
            try:
                self._children[trial.number] = open_run(self._tracking, name, self._key_of(trial), params, tags)
            except UnavailableError as error:
                _log.warning("no MLflow run for trial %s yet (%s): --resume records it later", trial.trial_id, error)
                return None
        return self._children[trial.number]

    def _log_curve(self, child: Run, trial: Trial) -> None:
        """Logs the rungs that the run does not have yet."""
        results = record.curve(self._output, trial.trial_id)
        for result in results[self._logged.get(trial.number, 0) :]:
            spent = {"flops": result.budget.flops, "core_seconds": result.budget.core_seconds}
            child.log_metrics({**result.objectives, **spent}, result.samples_seen)
        self._logged[trial.number] = len(results)

    def _key_of(self, trial: Trial) -> str:
        return f"{self._key}-{trial.trial_id}"
