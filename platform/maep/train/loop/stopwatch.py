"""Time of a step by phase, at no measurable cost.

On a CPU every step is timed by the clock. A GPU runs asynchronously: every sixteenth step records events in its stream,
which `read` evaluates; time in which the GPU waits for data counts as `data`.
"""

from __future__ import annotations

import time

import torch

_EVERY = 16


class Stopwatch:
    """Seconds of each phase of a step: `start`, then `lap` at the end of each phase."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.steps = self.timed = 0
        self.totals: dict[str, float] = {}
        self._last = 0.0
        self._event: torch.cuda.Event | None = None
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """Starts a step."""
        due = not self.on_gpu or self.steps % _EVERY == 0
        self.steps += 1
        self.timed += due
        self._event = _recorded() if self.on_gpu and due else None
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Counts the time since the last call as `phase`; laps of one phase add up."""
        if not self.on_gpu:
            now = time.perf_counter()
            self.totals[phase] = self.totals.get(phase, 0.0) + now - self._last
            self._last = now
        elif self._event is not None:
            event = _recorded()
            self._events.append((phase, self._event, event))
            self._event = event

    def read(self) -> dict[str, float]:
        """Mean seconds of each phase per timed step since the last call; empty where none was timed."""
        for phase, start, end in self._events:
            end.synchronize()
            self.totals[phase] = self.totals.get(phase, 0.0) + start.elapsed_time(end) / 1000
        means = {phase: total / self.timed for phase, total in self.totals.items()}
        self.totals, self._events, self.timed = {}, [], 0
        return means


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
