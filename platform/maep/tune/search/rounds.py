"""A search as a machine of rounds: which pieces of work there are now, and what follows when one has ended.

It knows neither Ray nor a clock. Trials come in generations (`suggest`); those of a generation go from rung to
rung together (`halving`). Where the search stands is what lies in its output: a machine that is made again
after a kill, however hard, finds the finished pieces there and hands out the others, which go on from their own
checkpoints. A piece that ended in between is not repeated, and none is forgotten.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from maep.errors import ArtifactError
from maep.tune import record
from maep.tune.config import TuneConfig, sign
from maep.tune.record import Point, Status, TrialRecord
from maep.tune.search import halving, suggest
from maep.tune.search.suggest import Tried
from maep.tune.trial import run
from maep.tune.trial.run import Trial


@dataclass(frozen=True)
class Work:
    """A piece of work: the pretraining of a trial (for all that share it), or its way to a rung."""

    trial: Trial
    rung: int | None
    """None: the pretraining."""

    @property
    def name(self) -> str:
        """For people and Ray: what is worked on."""
        return f"pretrain-{self.trial.pretraining}" if self.rung is None else f"{self.trial.trial_id}-rung{self.rung}"


class Listener(Protocol):
    """What wants to know of a search: a table, a tracker."""

    def on_start(self, work: Work) -> None:
        """A piece of work begins."""

    def on_point(self, trial: Trial, point: Point) -> None:
        """A trial was measured at a rung; also at one that it had reached before the search was gone on with."""

    def on_end(self, trial: Trial, ended: TrialRecord) -> None:
        """A trial has ended; also one that had before."""


class Silent:
    """A listener to inherit from, or for those who want none."""

    def on_start(self, work: Work) -> None:
        """Nothing."""

    def on_point(self, trial: Trial, point: Point) -> None:
        """Nothing."""

    def on_end(self, trial: Trial, ended: TrialRecord) -> None:
        """Nothing."""


class Search:
    """Hands out work with `next` until `is_finished`, and is told by `ended`. One thread at a time."""

    def __init__(self, config: TuneConfig, output: Path, listener: Listener | None = None) -> None:
        self.config, self.output, self.listener = config, output, listener or Silent()
        self.num_rungs = config.halving.num_rungs if config.halving is not None else 1
        self.records: dict[int, TrialRecord] = {}
        self.is_finished = False
        self._known = {each.number: each for each in record.read_all(output)}
        self._points: dict[int, list[Point]] = {}
        self._trials: list[Trial] = []
        self._members: list[Trial] = []
        self._rung = 0
        self._waiting: list[Work] = []
        self._running: list[Work] = []
        self._pretrained: set[str] = set()
        self._begin_generation()
        self._settle()

    def next(self) -> Work | None:
        """A piece of work that can begin now; None where there is none until another has ended."""
        for work in self._waiting:
            if not self._waits_for_pretraining(work):
                self._waiting.remove(work)
                self._running.append(work)
                self.listener.on_start(work)
                return work
        return None

    def ended(self, work: Work, failure: str | None) -> None:
        """A piece has ended; `failure` says why, where it left no result.

        A process may die once it has written its result: then that counts, as it does for one who goes on after a kill.
        """
        self._running.remove(work)
        key = work.trial.pretraining
        if work.rung is not None:
            if failure is None or self._has_reached(work.trial):
                self._reached(work.trial)
            else:
                self._end(work.trial, "failed", failure)
        elif key is not None and (failure is None or run.is_pretrained(self.output, key)):
            self._pretrained.add(key)
        else:  # a later generation's trial tries it again, from its newest checkpoint
            for other in [other for other in self._waiting if other.trial.pretraining == key]:
                self._waiting.remove(other)
                self._end(other.trial, "failed", f"its pretraining failed: {failure}")
        self._settle()

    def _settle(self) -> None:
        """Goes on to where there is something to do: after a kill that can be many rounds."""
        while not (self._waiting or self._running or self.is_finished):
            self._end_round()

    def _begin_generation(self) -> None:
        """Chooses the next trials, or ends the search where there are no more."""
        chosen = [] if self._trials else [dict(settings) for settings in self.config.fixed]
        left = len(self.config.fixed) + self.config.num_trials - len(self._trials) - len(chosen)
        chosen += suggest.choose(
            self.config, min(left, suggest.generation_size(self.config)), [*map(self._tried, self._trials)]
        )
        if not chosen:
            self.is_finished = True
            return
        first = len(self._trials)
        self._members = [run.make(self.config, first + i, settings) for i, settings in enumerate(chosen)]
        self._trials += self._members
        self._rung = 0
        self._begin_round()

    def _begin_round(self) -> None:
        """What the members have to do to reach the rung, where they have not done it before the search was gone on."""
        for member in self._members:
            known = self._known.get(member.number)
            if known is not None and known.trial_id != member.trial_id:
                raise ArtifactError(
                    f"{self.output} holds trial {known.trial_id}, where this search chooses {member.trial_id}: it was"
                    " begun with another version of Optuna or maep: go on with that one, or choose another --output"
                )
            self._points.setdefault(member.number, [])
            if self._has_reached(member):
                self._reached(member)
            elif known is not None:
                assert known.status == "failed"
                self._note(member, known)
            else:
                self._waiting.append(Work(member, self._rung))
        first: dict[str, Work] = {}
        for work in self._waiting:
            key = work.trial.pretraining
            if key is not None and key not in self._pretrained and key not in first:
                if run.is_pretrained(self.output, key):
                    self._pretrained.add(key)
                else:
                    first[key] = Work(work.trial, None)
        self._waiting[:0] = first.values()

    def _waits_for_pretraining(self, work: Work) -> bool:
        key = work.trial.pretraining
        return work.rung is not None and key is not None and key not in self._pretrained

    def _has_reached(self, member: Trial) -> bool:
        return len(record.curve(self.output, member.trial_id)) > self._rung

    def _reached(self, member: Trial) -> None:
        point = record.curve(self.output, member.trial_id)[self._rung]
        self._points[member.number].append(point)
        self.listener.on_point(member, point)
        if self._rung == self.num_rungs - 1:
            self._end(member, "done", None)

    def _end_round(self) -> None:
        """All have arrived: decides who goes on to the next rung."""
        left = [member for member in self._members if member.number not in self.records]
        if left:
            arrived = {member.number: self._values(member.number, self._rung) for member in left}
            earlier = {
                number: self._values(number, self._rung)
                for number, points in self._points.items()
                if len(points) > self._rung and number not in arrived
            }
            assert self.config.halving is not None
            kept = halving.goes_on(arrived, earlier, self.config.halving.factor)
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
        """Writes the record of a trial, unless it was written before the search was gone on with."""
        known = self._known.get(member.number)
        if known is None:
            known = self._record(member, status, reason)
            record.write(self.output, known)
        if known.status == "stopped":
            shutil.rmtree(record.folder(self.output, member.trial_id) / "checkpoints", ignore_errors=True)
        self._note(member, known)

    def _note(self, member: Trial, ended: TrialRecord) -> None:
        self.records[member.number] = ended
        self.listener.on_end(member, ended)

    def _record(self, member: Trial, status: Status, reason: str | None) -> TrialRecord:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        last = self._points[member.number][-1:]
        model = record.folder(self.output, member.trial_id) / "model"
        return TrialRecord(
            trial_id=member.trial_id,
            number=member.number,
            seed=member.seed,
            status=status,
            reason=reason,
            settings=member.settings,
            objectives=last[0].objectives if last else {},
            counts=last[0].counts if last else {},
            budget=run.spent(self.output, member),
            started=run.started(self.output, member) or now,
            ended=now,
            artifact=model.relative_to(self.output).as_posix() if status == "done" else None,
            configuration=run.configuration(self.output, member),
        )

    def _values(self, number: int, rung: int) -> halving.Values:
        return _signed(self.config, self._points[number][rung].objectives)

    def _tried(self, member: Trial) -> Tried:
        points = self._points[member.number]
        ended = self.records[member.number]
        values = None if ended.status == "failed" else _signed(self.config, points[-1].objectives)
        return Tried(member.settings, values, len(points) - 1, ended.status == "done")


def _signed(config: TuneConfig, objectives: Mapping[str, float]) -> halving.Values:
    """The objectives in order, more is better."""
    return tuple(sign(name) * objectives[name] for name in config.objectives)
