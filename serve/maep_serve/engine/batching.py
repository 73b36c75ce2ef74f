"""Batching on top of an event loop: requests of equal shape and type share a forward pass.

While a batch computes, the next one fills. The computing thread itself takes it, the moment it is free: no turn of the
event loop lies between two batches. (A batcher that closes the next batch as soon as the running one starts keeps
batches small under load.)
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch

_Key = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class BatchTimes:
    """What one batch took, in seconds: the wait of each of its images, and the forward pass they shared."""

    waits_s: Sequence[float]
    forward_s: float


@dataclass(frozen=True)
class _Job:
    image: torch.Tensor
    answer: asyncio.Future[torch.Tensor]
    arrived: float


class Batcher:
    """Runs `forward` on batches of what `submit` was given, one batch at a time, in `executor`.

    forward: [B, ...] -> [B, ...]; the answer's row i belongs to the input's row i. A batch of one is passed on
        unchanged, so that its answer equals an offline call bit for bit.
    executor: may be shared: after each batch, others that wait for it have their turn.
    wait_s: how long an image waits for company while nothing computes; 0 is best where forward takes its time.
    observe: called on the event loop with the times of each batch that was computed.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        executor: Executor,
        max_batch_size: int,
        wait_s: float = 0.0,
        observe: Callable[[BatchTimes], None] | None = None,
    ) -> None:
        self._forward = forward
        self._executor = executor
        self._max_batch_size = max_batch_size
        self._wait_s = wait_s
        self._observe = observe
        self._lock = threading.Lock()  # between the event loop and the computing thread
        self._waiting: dict[_Key, deque[_Job]] = {}
        self._computing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start: asyncio.Handle | None = None
        self._closed = False

    async def submit(self, image: torch.Tensor) -> torch.Tensor:
        """The answer, [1, ...], for `image`, [1, ...]. A cancelled caller's image is dropped from the queue."""
        self._loop = loop = asyncio.get_running_loop()
        job = _Job(image, loop.create_future(), time.monotonic())
        with self._lock:
            if self._closed:
                job.answer.cancel()
            else:
                self._waiting.setdefault((image.dtype, tuple(image.shape)), deque()).append(job)
        self._start_soon(0)  # not at once: what else arrives in this turn of the event loop shares the batch
        return await job.answer

    async def close(self) -> None:
        """Ends the batcher; what still waits is cancelled."""
        with self._lock:
            self._closed = True
            waiting = [job for jobs in self._waiting.values() for job in jobs]
            self._waiting.clear()
        for job in waiting:
            job.answer.cancel()
        if self._start is not None:
            self._start.cancel()

    def _start_soon(self, delay_s: float) -> None:
        """On the event loop: looks for a batch after `delay_s`, unless one computes, whose end looks for the next."""
        assert self._loop is not None
        if self._computing:
            return
        if self._start is not None:
            if self._wait_s == 0:
                return
            self._start.cancel()  # a batch that has filled is due before its time
        if delay_s > 0:
            self._start = self._loop.call_later(delay_s, self._begin)
        else:
            self._start = self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._start = None
        with self._lock:
            if self._computing or self._closed:
                return
            delay_s = self._delay_s()
            self._computing = delay_s is not None and delay_s <= 0
        if self._computing:
            self._executor.submit(self._compute)
        elif delay_s is not None:
            self._start_soon(delay_s)

    def _compute(self) -> None:
        """In the computing thread: one batch, then the next one if there is one."""
        assert self._loop is not None
        with self._lock:
            delay_s = None if self._closed else self._delay_s()
            if delay_s is None or delay_s > 0:
                self._computing = False
                if delay_s is not None:
                    self._tell(self._start_soon, delay_s)
                return
            batch = self._take()
        began = time.monotonic()
        answers: torch.Tensor | Exception
        try:
            answers = self._forward(torch.cat([job.image for job in batch]) if len(batch) > 1 else batch[0].image)
            assert len(answers) == len(batch)
        except Exception as error:
            answers = error
        times = BatchTimes([began - job.arrived for job in batch], time.monotonic() - began)
        self._tell(self._deliver, batch, answers, times)
        try:
            self._executor.submit(self._compute)
        except RuntimeError:  # the executor was shut down: the service is ending
            self._computing = False

    def _deliver(self, batch: list[_Job], answers: torch.Tensor | Exception, times: BatchTimes) -> None:
        """On the event loop: each caller gets its own row, or the batch's error."""
        for row, job in enumerate(batch):
            if job.answer.done():
                continue
            if isinstance(answers, Exception):
                job.answer.set_exception(answers)
            else:
                job.answer.set_result(answers[row : row + 1])
        if self._observe is not None and not isinstance(answers, Exception):
            self._observe(times)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop was closed: nobody waits any more
            self._closed = True

    def _delay_s(self) -> float | None:
        """Seconds until a batch is due, at most 0 where one is; None where nobody waits. The lock is held."""
        self._drop_who_has_gone()
        if not self._waiting:
            return None
        jobs = self._waiting[self._oldest()]
        if len(jobs) >= self._max_batch_size:
            return 0.0
        return jobs[0].arrived + self._wait_s - time.monotonic()

    def _take(self) -> list[_Job]:
        """The next batch. The lock is held."""
        key = self._oldest()
        jobs = self._waiting[key]
        batch = [jobs.popleft() for _ in range(min(len(jobs), self._max_batch_size))]
        if not jobs:
            del self._waiting[key]
        return batch

    def _oldest(self) -> _Key:
        """The shape and type whose first job has waited longest. The lock is held, and somebody waits."""
        return min(self._waiting, key=lambda key: self._waiting[key][0].arrived)

    def _drop_who_has_gone(self) -> None:
        for key in list(self._waiting):
            live = deque(job for job in self._waiting[key] if not job.answer.done())
            if live:
                self._waiting[key] = live
            else:
                del self._waiting[key]
