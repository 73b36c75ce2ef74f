"""The progress of a search on standard error: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from maep.tune.config import TuneConfig
from maep.tune.record import RungResult, TrialRecord
from maep.tune.search import suggest
from maep.tune.search.rounds import Listener, WorkItem
from maep.tune.search.space import setting_text
from maep.tune.trial.trial import Trial

_ROWS = 30


class LiveTable(Listener):
    """Shows the trials; enter it while the search runs."""

    def __init__(self, settings: TuneConfig) -> None:
        self._settings = settings
        self._total = suggest.most_trials(settings)
        self._rows: dict[int, list[str]] = {}
        self._images = self._ended = 0
        self._began = time.monotonic()
        console = Console(stderr=True)
        is_drawn = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, get_renderable=self._grid, refresh_per_second=2) if is_drawn else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def on_start(self, item: WorkItem) -> None:
        """Shows that work on the trial starts."""
        if item.rung is None:
            self._say(f"{item.name}  started")
        else:
            self._show(item.trial, f"to rung {item.rung + 1}")

    def on_rung(self, trial: Trial, result: RungResult) -> None:
        """Shows what was measured."""
        self._show(trial, "measured", result)

    def on_end(self, trial: Trial, ended: TrialRecord) -> None:
        """Shows how it ended."""
        self._ended += 1
        self._images += ended.budget.samples_seen
        last = RungResult(ended.budget.samples_seen, ended.objectives, ended.counts, ended.budget)
        self._show(trial, ended.status + (f": {ended.reason}" if ended.reason else ""), last)

    def _show(self, trial: Trial, status: str, result: RungResult | None = None) -> None:
        settings = setting_text(trial.settings)
        before = self._rows.get(trial.number)
        seen, values = before[2:4] if before else ("", "")
        if result is not None:
            seen = f"{result.samples_seen:,}"
            names = [name for name in self._settings.objectives if name in result.objectives]
            values = "  ".join(f"{name} {result.objectives[name]:.4g}" for name in names)
        self._rows[trial.number] = [trial.trial_id, settings, seen, values, status]
        self._say("  ".join(filter(None, [trial.trial_id, status, settings, seen and f"{seen} images", values])))

    def _say(self, line: str) -> None:
        if self._live is None:
            print(f"tune  {self._ended}/{self._total}  {line}", file=sys.stderr, flush=True)

    def _grid(self) -> Table:
        seconds = time.monotonic() - self._began
        title = f"{self._ended} of {self._total} trials, {self._images:,} images, {seconds / 60:.1f} min"
        table = Table(title=title)
        for name in ("trial", "settings", "images", "on dev", "status"):
            table.add_column(name, overflow="fold")
        for number in sorted(self._rows)[-_ROWS:]:
            table.add_row(*map(Text, self._rows[number]))  # Text: a reason may look like markup
        return table
