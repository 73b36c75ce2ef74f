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

_AGREE_EVERY = 10

Notice = Callable[[], bool]
"""Whether this process was told to end; asked at every step."""


def never() -> bool:
    """No notice comes."""
    return False


def agreed(notice: Notice, step: int, num_workers: int, device: torch.device) -> bool:
    """Whether any of the processes was told; several ask each other every tenth step, so that all stop at the same."""
    if num_workers == 1:
        return notice()
    if step % _AGREE_EVERY:
        return False
    told = torch.tensor([int(notice())], device=device)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return bool(told.item())


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
