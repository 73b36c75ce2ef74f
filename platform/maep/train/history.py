"""`history.jsonl` beside a run's result: a line for each start and end, so that what a fault cost can be read later.

A killed process says nothing, so the steps it had done stand in a file of their own, written at each step.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from maep.errors import Stopped

HISTORY = "history.jsonl"
_POSITION = "position"
_DIGITS = 20
_log = logging.getLogger("maep.train")


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

    def begin(self, step: int, num_workers: int) -> None:
        """Says that the run starts, or goes on, at `step`, and how many steps are done again."""
        if self._mute:
            return
        done = int(os.pread(self._position, _DIGITS, 0) or b"0")
        before = read(self._path.parent)
        values: dict[str, Any] = {"num_workers": num_workers, "redone": max(0, done - step)}
        if before and before[-1]["event"] in ("started", "resumed"):
            pid, host = before[-1]["pid"], before[-1]["host"]
            values |= {"lost_pid": pid, "lost_host": host}
            again = values["redone"]
            _log.warning("process %d on %s ended unheard: from step %d, %d steps again", pid, host, step, again)
        self._write("resumed" if before else "started", step, values)
        self.at(step)

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


def read(output: Path) -> list[dict[str, Any]]:
    """The lines of the history in `output`; one that was cut short is left out.

    Each has event (started, resumed, finished, stopped after a notice, failed), step, pid, host, and time in s since
    the epoch. Starts also have num_workers, redone (steps), and, where the process before ended unheard, lost_pid and
    lost_host; failures have error.
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
