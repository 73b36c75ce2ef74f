"""Being told that this process will soon be ended, as spot machines, batch systems and Ctrl-C's cousins do.

A run that is told so takes one checkpoint at the next step and ends with `Stopped`: nothing is done twice.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

Notice = Callable[[], bool]
"""Whether this process was told to end; asked at every step."""


def never() -> bool:
    """No notice comes."""
    return False


class Agreement:
    """Whether any of the workers was told, so that all stop after the same step.

    Each step asks anew. The exchange is of one number and goes on beside the step's own work, so it costs no time: a
    notice ends the step that is under way and at most one more.
    """

    def __init__(self, notice: Notice, num_workers: int, device: torch.device) -> None:
        self._notice, self._num_workers, self._device = notice, num_workers, device
        self._told: torch.Tensor | None = None
        self._exchange: torch.distributed.Work | None = None

    def ask(self) -> None:
        """Begins the exchange, before a step's work; all workers must call."""
        if self._num_workers > 1:
            self._told = torch.tensor([int(self._notice())], device=self._device)
            self._exchange = torch.distributed.all_reduce(self._told, torch.distributed.ReduceOp.MAX, async_op=True)

    def answer(self) -> bool:
        """What came of it, after the step's work: the same for all. One process alone needs no exchange."""
        if self._told is None or self._exchange is None:
            return self._notice()
        self._exchange.wait()
        return bool(self._told.item())


@contextmanager
def on_sigterm(tell: Callable[[], None] | None = None) -> Iterator[Notice]:
    """While inside, the first SIGTERM is a notice, of which `tell` is told too; a second one does what it did before.

    Only the main thread can listen; elsewhere no notice comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield never
        return
    told = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        told.set()
        signal.signal(number, before)
        if tell is not None:
            tell()

    before = signal.signal(signal.SIGTERM, hear) or signal.SIG_DFL
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
