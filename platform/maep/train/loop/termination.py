"""Termination notices: SIGTERM, which clouds, batch systems and people send before they kill a process.

After a notice, a run saves a checkpoint at the next step and raises `Stopped`, so no step is repeated.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

Notice = Callable[[], bool]
"""Whether this process was asked to stop; called at every step."""


def never() -> bool:
    """No notice."""
    return False


class StopVote:
    """Whether any worker has a notice, so that all stop after the same step.

    Every step votes again. The exchange of one number overlaps with the step's work and costs no time: the run stops
    after the current step or the next one.
    """

    def __init__(self, notice: Notice, num_workers: int, device: torch.device) -> None:
        self._notice, self._num_workers, self._device = notice, num_workers, device
        self._stop: torch.Tensor | None = None
        self._exchange: torch.distributed.Work | None = None

    def begin(self) -> None:
        """Starts the exchange, before a step's work; all workers must call it."""
        if self._num_workers > 1:
            self._stop = torch.tensor([int(self._notice())], device=self._device)
            self._exchange = torch.distributed.all_reduce(self._stop, torch.distributed.ReduceOp.MAX, async_op=True)

    def result(self) -> bool:
        """Whether to stop, the same for all workers; call it after the step's work."""
        if self._stop is None or self._exchange is None:
            return self._notice()
        self._exchange.wait()
        return bool(self._stop.item())


@contextmanager
def on_sigterm(notify: Callable[[], None] | None = None) -> Iterator[Notice]:
    """Within the block, the first SIGTERM is a notice and calls `notify`; a second one has its previous effect.

    Only the main thread receives signals; other threads get no notice.
    """
    if threading.current_thread() is not threading.main_thread():
        yield never
        return
    received = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        received.set()
        signal.signal(number, before)
        if notify is not None:
            notify()

    before = signal.signal(signal.SIGTERM, handle) or signal.SIG_DFL
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
