"""`history.jsonl` beside a run's result: one line for each start and end, from which the cost of a fault can be read.

A killed process cannot write a line, so the number of steps done is kept in a file of its own, written at each step.
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
"""pid and host of a training process."""


def members(num_workers: int) -> list[Worker]:
    """The workers of this group, by rank; all workers must call it."""
    me = {"pid": os.getpid(), "host": socket.gethostname()}
    found = [me] * num_workers
    if num_workers > 1:
        torch.distributed.all_gather_object(found, me)
    return found


def named(rank: int, worker: Worker) -> str:
    """A worker's name in the log."""
    return f"worker {rank} (process {worker['pid']} on {worker['host']})"


class History:
    """The history in folder `output`, written by rank 0; the step counter is in folder `checkpoints`.

    A context manager around the steps of a run: an exception inside decides how the run ended.
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
        """Records that `workers` (see `members`) start or resume at `step`, and how many steps they redo."""
        if self._mute:
            return
        before = read(self._path.parent)
        redone = self._redone(before, step)
        values: dict[str, Any] = {"num_workers": len(workers), "workers": workers, "redone": redone}
        lost = _lost(before, self._folder)
        if lost is not None:
            rank, worker = lost
            values |= {"lost_rank": rank, "lost_pid": worker["pid"], "lost_host": worker["host"]}
            count = "an unknown number of" if redone is None else redone
            died = named(rank, worker)
            _log.warning("%s died without reporting; resuming at step %d, redoing %s steps", died, step, count)
        self._write("resumed" if before else "started", step, values)
        self.at(step)

    def _redone(self, before: Sequence[Mapping[str, Any]], step: int) -> int | None:
        """Steps to redo; None where the counter was lost with its machine."""
        position = os.pread(self._position, _DIGITS, 0)
        if position:
            return max(0, int(position) - step)
        if before and before[-1]["event"] in ("started", "resumed"):
            return None
        return max(0, before[-1]["step"] - step) if before else 0

    def at(self, step: int) -> None:
        """Records that `step` steps are done; takes a microsecond and survives a kill."""
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
        with suppress(OSError):  # a full disk: the error that is being raised reports it
            if isinstance(error, Stopped):
                self._write("stopped", self._step, {})
            else:
                self._write("failed", self._step, {"error": str(error) or type(error).__name__})

    def _write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        line = {"event": event, "step": step, "pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | dict(values)) + "\n")


def note_lost(output: Path, ranks: Sequence[int]) -> list[str]:
    """Records the workers that Ray saw die, for the next group's history, and returns their names for the log."""
    storage.write_bytes(output / "checkpoints" / _LOST, json.dumps(sorted(ranks)).encode())
    workers = dict(enumerate(_last_group(read(output))))
    return [named(rank, workers[rank]) if rank in workers else f"worker {rank}" for rank in sorted(ranks)]


def _last_group(before: Sequence[Mapping[str, Any]]) -> list[Worker]:
    return next((line["workers"] for line in reversed(before) if "workers" in line), [])


def _lost(before: Sequence[Mapping[str, Any]], checkpoints: Path) -> tuple[int, Worker] | None:
    """The first worker of the previous group that died; rank 0 where that group recorded no end."""
    path, workers = checkpoints / _LOST, _last_group(before)
    ranks = json.loads(path.read_bytes()) if path.is_file() else []
    path.unlink(missing_ok=True)
    if not ranks and before and before[-1]["event"] in ("started", "resumed"):
        ranks = [0]
    return next(((rank, workers[rank]) for rank in ranks if rank < len(workers)), None)


def read(output: Path) -> list[dict[str, Any]]:
    """The lines of the history in `output`, without truncated ones.

    Each has event (started, resumed, finished, stopped after a notice, failed), step, pid, host, and time in s since
    the epoch. Starts also have num_workers, workers (pid and host of each, by rank), redone (steps; null where the
    counter is lost), and, where a worker of the previous group died, lost_rank, lost_pid and lost_host; failures have
    error.
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
