"""`history.jsonl` beside a run's result: a line for each start and end, so that what a fault cost can be read later.

A killed process says nothing, so the steps it had done stand in a file of their own, written at each step.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from maep import storage
from maep.errors import Stopped

HISTORY = "history.jsonl"
_POSITION, _LOST = "position", "lost.json"
_DIGITS = 20
_log = logging.getLogger("maep.train")


Worker = dict[str, Any]
"""pid and host of a process that trains."""


def members(num_workers: int) -> list[Worker]:
    """The workers of a group, by rank; all must call."""
    me = {"pid": os.getpid(), "host": socket.gethostname()}
    found = [me] * num_workers
    if num_workers > 1:
        torch.distributed.all_gather_object(found, me)
    return found


def named(rank: int, worker: Worker) -> str:
    """A worker, as the log calls it."""
    return f"worker {rank} (process {worker['pid']} on {worker['host']})"


class History:
    """The history in folder `output`, written by rank 0; the steps are counted in folder `checkpoints` until the end.

    Entered and left around the steps of a run: what is raised inside decides how it ended.
    """

    def __init__(self, output: Path, checkpoints: Path, rank: int = 0) -> None:
        self._path, self._folder, self._mute = output / HISTORY, checkpoints, rank > 0
        self._step, self._position = 0, -1

    def __enter__(self) -> Self:
        if not self._mute:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._position = os.open(self._folder / _POSITION, os.O_RDWR | os.O_CREAT, 0o644)
        return self

    def begin(self, step: int, workers: Sequence[Worker]) -> None:
        """Says that `workers` (`members`) start, or go on, at `step`, and how many steps are done again."""
        if self._mute:
            return
        before = read(self._path.parent)
        redone = self._redone(before, step)
        values: dict[str, Any] = {"num_workers": len(workers), "workers": workers, "redone": redone}
        lost = _lost(before, self._folder)
        if lost is not None:
            rank, worker = lost
            values |= {"lost_rank": rank, "lost_pid": worker["pid"], "lost_host": worker["host"]}
            again = "some" if redone is None else redone
            _log.warning("%s ended unheard: from step %d, %s steps again", named(rank, worker), step, again)
        self._write("resumed" if before else "started", step, values)
        self.at(step)

    def _redone(self, before: Sequence[Mapping[str, Any]], step: int) -> int | None:
        """Steps that are done again; None where they were counted on a machine that is gone."""
        position = os.pread(self._position, _DIGITS, 0)
        if position:
            return max(0, int(position) - step)
        if before and before[-1]["event"] in ("started", "resumed"):
            return None
        return max(0, before[-1]["step"] - step) if before else 0

    def at(self, step: int) -> None:
        """So many steps are done: it takes a microsecond, and outlives the process."""
        self._step = step
        if not self._mute:
            os.pwrite(self._position, f"{step:{_DIGITS}d}".encode(), 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mute:
            return
        os.close(self._position)
        if error is None:
            self._write("finished", self._step, {})
            return
        with suppress(OSError):  # on a disk that is full: the error that is on its way says so
            if isinstance(error, Stopped):
                self._write("stopped", self._step, {})
            else:
                self._write("failed", self._step, {"error": str(error) or type(error).__name__})

    def _write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        line = {"event": event, "step": step, "pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | dict(values)) + "\n")


def note_lost(output: Path, ranks: Sequence[int]) -> list[str]:
    """Leaves word, for the group that comes, of the workers that were seen to die; how the log calls them."""
    storage.write_bytes(output / "checkpoints" / _LOST, json.dumps(sorted(ranks)).encode())
    workers = dict(enumerate(_last_group(read(output))))
    return [named(rank, workers[rank]) if rank in workers else f"worker {rank}" for rank in sorted(ranks)]


def _last_group(before: Sequence[Mapping[str, Any]]) -> list[Worker]:
    starts = [line for line in before if "num_workers" in line]
    if not starts:
        return []
    found: list[Worker] = starts[-1].get("workers", [{key: starts[-1][key] for key in ("pid", "host")}])
    return found


def _lost(before: Sequence[Mapping[str, Any]], checkpoints: Path) -> tuple[int, Worker] | None:
    """The first worker of the group before that was seen to die; rank 0 where the group ended unheard."""
    path, workers = checkpoints / _LOST, _last_group(before)
    ranks = json.loads(path.read_bytes()) if path.is_file() else []
    path.unlink(missing_ok=True)
    if not ranks and before and before[-1]["event"] in ("started", "resumed"):
        ranks = [0]
    return next(((rank, workers[rank]) for rank in ranks if rank < len(workers)), None)


def read(output: Path) -> list[dict[str, Any]]:
    """The lines of the history in `output`; one that was cut short is left out.

    Each has event (started, resumed, finished, stopped after a notice, failed), step, pid, host, and time in s since
    the epoch. Starts also have num_workers, workers (pid and host of each, by rank), redone (steps; null where
    the machine that counted them is gone), and, where a worker of the group before died unheard, lost_rank, lost_pid
    and lost_host; failures have error.
    """
    path = output / HISTORY
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
