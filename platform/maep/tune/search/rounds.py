"""The state machine of a search: which work items can run now, and what follows when one ends.

It uses neither Ray nor a clock. Trials come in generations (`suggest`); the trials of a generation climb from rung to
rung together (`halving`). All state is in the output folder: after a kill, a new search finds the finished items there
and hands out the others, which resume from their own checkpoints. No finished item is repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from maep.errors import ArtifactError
from maep.tune import record
from maep.tune.config import TuneConfig, sign
from maep.tune.record import RungResult, Status, TrialRecord
from maep.tune.search import halving, suggest
from maep.tune.search.suggest import Tried
from maep.tune.trial import run as trial_run
from maep.tune.trial.plan import read_plan
from maep.tune.trial.trial import Trial, is_pretrained, make_trial


@dataclass(frozen=True)
class WorkItem:
    """The pretraining of a trial (for all that share it), or its fine-tuning up to a rung."""

    trial: Trial
    rung: int | None
    """None: the pretraining."""

    @property
    def name(self) -> str:
        """The name in the log and in Ray."""
        return f"pretrain-{self.trial.pretraining}" if self.rung is None else f"{self.trial.trial_id}-rung{self.rung}"


class Listener:
    """Is called on the events of a search. The base class does nothing."""

    def on_start(self, item: WorkItem) -> None:
        """A work item starts."""

    def on_rung(self, trial: Trial, result: RungResult) -> None:
        """A trial was measured at a rung; called again for earlier rungs when a search is resumed."""

    def on_end(self, trial: Trial, ended: TrialRecord) -> None:
        """A trial has ended; called again for earlier trials when a search is resumed."""


class Search:
    """Hands out work with `next_item` until `is_finished`; `end_item` reports its outcome. One thread at a time.

    `records` has the trials that have ended, by number.
    """

    def __init__(self, config: TuneConfig, output: Path, listeners: Sequence[Listener] = ()) -> None:
        self.config, self.output, self.listeners = config, output, listeners
        self.num_rungs = config.halving.num_rungs if config.halving is not None else 1
        self.records: dict[int, TrialRecord] = {}
        self.is_finished = False
        self._known = {each.number: each for each in record.read_all(output)}
        self._results: dict[int, list[RungResult]] = {}
        self._trials: list[Trial] = []
        self._members: list[Trial] = []
        self._rung = 0
        self._waiting: list[WorkItem] = []
        self._running: list[WorkItem] = []
        self._pretrained: set[str] = set()
        self._begin_generation()
        self._settle()

    def next_item(self) -> WorkItem | None:
        """A work item that can start now; None if there is none until another one ends."""
        for item in self._waiting:
            if not self._waits_for_pretraining(item):
                self._waiting.remove(item)
                self._running.append(item)
                for listener in self.listeners:
                    listener.on_start(item)
                return item
        return None

    def end_item(self, item: WorkItem, failure: str | None) -> None:
        """A work item has ended; `failure` is the reason where it left no result.

        If a process dies after writing its result, the result counts, as it does when a search is resumed.
        """
        self._running.remove(item)
        key = item.trial.pretraining
        if item.rung is not None:
            if failure is None or self._has_reached(item.trial):
                self._reach(item.trial)
            else:
                self._end(item.trial, "failed", failure)
        elif key is not None and (failure is None or is_pretrained(self.output, key)):
            self._pretrained.add(key)
        else:  # a trial of a later generation tries it again, from its newest checkpoint
            for other in [other for other in self._waiting if other.trial.pretraining == key]:
                self._waiting.remove(other)
                self._end(other.trial, "failed", f"its pretraining failed: {failure}")
        self._settle()

    def _settle(self) -> None:
        """Ends rounds until there is work; a resumed search may end many."""
        while not (self._waiting or self._running or self.is_finished):
            self._end_round()

    def _begin_generation(self) -> None:
        """Chooses the next trials, or finishes the search where there are no more."""
        chosen = [] if self._trials else [dict(settings) for settings in self.config.fixed]
        left = len(self.config.fixed) + self.config.num_trials - len(self._trials) - len(chosen)
        chosen += suggest.choose(
            self.config, min(left, suggest.generation_size(self.config)), [*map(self._tried, self._trials)]
        )
        if not chosen:
            self.is_finished = True
            return
        first = len(self._trials)
        self._members = [make_trial(self.config, first + i, settings) for i, settings in enumerate(chosen)]
        self._trials += self._members
        self._rung = 0
        self._begin_round()

    def _begin_round(self) -> None:
        """Queues the work that brings the members to the rung, unless it was done before the search was resumed."""
        for member in self._members:
            known = self._known.get(member.number)
            if known is not None and known.trial_id != member.trial_id:
                raise ArtifactError(
                    f"{self.output} holds trial {known.trial_id} where this search chooses {member.trial_id}: another"
                    " version of Optuna or maep started it; resume with that version, or choose another --output"
                )
            self._results.setdefault(member.number, [])
            if self._has_reached(member):
                self._reach(member)
            elif known is not None:
                assert known.status == "failed"
                self._note(member, known)
            else:
                self._waiting.append(WorkItem(member, self._rung))
        first: dict[str, WorkItem] = {}
        for item in self._waiting:
            key = item.trial.pretraining
            if key is not None and key not in self._pretrained and key not in first:
                if is_pretrained(self.output, key):
                    self._pretrained.add(key)
                else:
                    first[key] = WorkItem(item.trial, None)
        self._waiting[:0] = first.values()

    def _waits_for_pretraining(self, item: WorkItem) -> bool:
        key = item.trial.pretraining
        return item.rung is not None and key is not None and key not in self._pretrained

    def _has_reached(self, member: Trial) -> bool:
        return len(record.curve(self.output, member.trial_id)) > self._rung

    def _reach(self, member: Trial) -> None:
        result = record.curve(self.output, member.trial_id)[self._rung]
        self._results[member.number].append(result)
        for listener in self.listeners:
            listener.on_rung(member, result)
        if self._rung == self.num_rungs - 1:
            self._end(member, "done", None)

    def _end_round(self) -> None:
        """Decides, once every member has reached the rung, which ones are promoted to the next."""
        left = [member for member in self._members if member.number not in self.records]
        if left:
            arrived = {member.number: self._values(member.number, self._rung) for member in left}
            earlier = {
                number: self._values(number, self._rung)
                for number, results in self._results.items()
                if len(results) > self._rung and number not in arrived
            }
            assert self.config.halving is not None
            kept = halving.promoted(arrived, earlier, self.config.halving.factor)
            kept |= {number for number in arrived if number < len(self.config.fixed)}  # references are not stopped
            for member in left:
                if member.number not in kept:
                    where = f"rung {self._rung + 1} of {self.num_rungs}"
                    self._end(member, "stopped", f"{where}: not among the best 1 in {self.config.halving.factor}")
            self._members = [member for member in left if member.number in kept]
            self._rung += 1
            if self._members:
                self._begin_round()
                return
        self._begin_generation()

    def _end(self, member: Trial, status: Status, reason: str | None) -> None:
        """Writes the record of a trial, unless it was written before the search was resumed."""
        known = self._known.get(member.number)
        if known is None:
            known = self._record(member, status, reason)
            record.write(self.output, known)
        if known.status == "stopped":
            shutil.rmtree(record.folder(self.output, member.trial_id) / "checkpoints", ignore_errors=True)
        self._note(member, known)

    def _note(self, member: Trial, ended: TrialRecord) -> None:
        self.records[member.number] = ended
        for listener in self.listeners:
            listener.on_end(member, ended)

    def _record(self, member: Trial, status: Status, reason: str | None) -> TrialRecord:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        last = self._results[member.number][-1:]
        folder = record.folder(self.output, member.trial_id)
        plan = read_plan(folder)
        return TrialRecord(
            trial_id=member.trial_id,
            number=member.number,
            seed=member.seed,
            status=status,
            reason=reason,
            settings=member.settings,
            objectives=last[0].objectives if last else {},
            counts=last[0].counts if last else {},
            budget=trial_run.spent(self.output, member),
            started=plan.started if plan is not None else now,
            ended=now,
            artifact=(folder / "model").relative_to(self.output).as_posix() if status == "done" else None,
            configuration=trial_run.configuration(self.output, member),
        )

    def _values(self, number: int, rung: int) -> halving.Values:
        return _signed(self.config, self._results[number][rung].objectives)

    def _tried(self, member: Trial) -> Tried:
        results = self._results[member.number]
        ended = self.records[member.number]
        values = None if ended.status == "failed" else _signed(self.config, results[-1].objectives)
        return Tried(member.settings, values, len(results) - 1, ended.status == "done")


def _signed(config: TuneConfig, objectives: Mapping[str, float]) -> halving.Values:
    """The objectives in order, higher is better."""
    return tuple(sign(name) * objectives[name] for name in config.objectives)
