"""Progress: a bar on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_EVERY_S = 10.0


class Bar:
    """The progress of one task. Closes when the task is done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._last = 0.0

    def show(self, done: int, total: int, eta_s: float | None, values: Mapping[str, float] | None = None) -> None:
        """Shows the progress; plain lines at most every ten seconds."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in (values or {}).items())
        eta = f"ETA {_duration(eta_s)}" if eta_s is not None else ""
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._draw(done, total, f"{text}  {eta}")
        elif done >= total or time.monotonic() - self._last >= _EVERY_S:
            self._last = time.monotonic()
            print(f"{self.name}  {done:,}/{total:,}  {text}  {eta}".rstrip(), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._progress is not None:
            self._console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _draw(self, done: int, total: int, text: str) -> None:
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._progress = Progress(*columns, TextColumn("{task.fields[text]}"), console=self._console)
            self._progress.start()
            self._task = self._progress.add_task(self.name, total=total, text="")
        assert self._task is not None
        self._progress.update(self._task, completed=done, text=text)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Stops drawing; the bar stays on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def wide(console: Console) -> Console:
    """`console`, at least 120 columns wide in a file or pipe, where rich would cut tables at 80."""
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
