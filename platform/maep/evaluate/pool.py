"""Processes of one thread each that share the tasks of an evaluation."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType

import torch

from maep.errors import UnavailableError
from maep.evaluate import units
from maep.evaluate.bench import Bench, Setup

_bench: Bench | None = None  # one per worker process


class Pool:
    """Runs tasks in `num_workers` processes, or in this one if that is 1; which one does a task changes no figure."""

    def __init__(self, bench: Bench, num_workers: int) -> None:
        self.bench = bench
        self.executor: ProcessPoolExecutor | None = None
        if num_workers > 1:
            self.executor = ProcessPoolExecutor(
                num_workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(bench.setup,)
            )

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)

    def run(self, tasks: Sequence[units.Task], tick: Callable[[units.Task], None]) -> None:
        """Does all `tasks`, calling `tick` after each; the first error ends it."""
        if self.executor is None:
            for task in tasks:
                units.run(self.bench, task)
                tick(task)
            return
        futures = {self.executor.submit(_work, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                future.result()
                tick(futures[future])
        except BrokenProcessPool:
            raise UnavailableError(
                "a worker process of the evaluation died (out of memory?): the same command goes on where it was,"
                " with fewer num_workers or a smaller batch_size"
            ) from None
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread while the block runs: sums in another order would be other sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start(setup: Setup) -> None:
    global _bench
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _bench = Bench(setup)


def _leave_with_parent() -> None:
    """Ends this process when the one that started it is gone, killed without a word to its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(task: units.Task) -> None:
    assert _bench is not None
    units.run(_bench, task)
