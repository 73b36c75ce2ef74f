"""Batching on top of an event loop: requests of equal shape and dtype share a forward pass.

While one batch is computed, the next one fills. The computing thread takes the next batch itself as soon as it is free,
without waiting for the event loop. (A batcher that closes the next batch when the current one starts produces small
batches under load.)
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
    """Times of one batch, in seconds: the queueing time of each of its images, and their common forward pass."""

    waits_s: Sequence[float]
    forward_s: float


@dataclass(frozen=True)
class _Request:
    image: torch.Tensor
    result: asyncio.Future[torch.Tensor]
    arrived: float


class Batcher:
    """Runs `forward` on batches of submitted images, one batch at a time, in `executor`.

    forward: [B, ...] -> [B, ...], where row i of the output belongs to row i of the input. A batch of one is passed
        unchanged, so that its output equals an offline call bit for bit.
    executor: may be shared; other users get their turn after each batch.
    wait_s: how long an image waits for others while nothing computes; 0 is best if forward passes are slow.
    observe: called on the event loop with the times of each completed batch.
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
        self._queues: dict[_Key, deque[_Request]] = {}
        self._computing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start: asyncio.Handle | None = None
        self._closed = False

    async def submit(self, image: torch.Tensor) -> torch.Tensor:
        """The output, [1, ...], for `image`, [1, ...]. If the caller is cancelled, its image leaves the queue."""
        self._loop = loop = asyncio.get_running_loop()
        request = _Request(image, loop.create_future(), time.monotonic())
        with self._lock:
            if self._closed:
                request.result.cancel()
            else:
                self._queues.setdefault((image.dtype, tuple(image.shape)), deque()).append(request)
        self._schedule(0)  # not at once: images that arrive in the same turn of the event loop share the batch
        return await request.result

    async def close(self) -> None:
        """Stop; queued requests are cancelled."""
        with self._lock:
            self._closed = True
            queued = [request for queue in self._queues.values() for request in queue]
            self._queues.clear()
        for request in queued:
            request.result.cancel()
        if self._start is not None:
            self._start.cancel()

    def _schedule(self, delay_s: float) -> None:
        """On the event loop: start a batch after `delay_s`, unless one computes, which starts the next when it ends."""
        assert self._loop is not None
        if self._computing:
            return
        if self._start is not None:
            if self._wait_s == 0:
                return
            self._start.cancel()  # a full batch starts before its wait is over
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
            self._schedule(delay_s)

    def _compute(self) -> None:
        """In the computing thread: run one batch, then submit the next one if there is one."""
        assert self._loop is not None
        with self._lock:
            delay_s = None if self._closed else self._delay_s()
            if delay_s is None or delay_s > 0:
                self._computing = False
                if delay_s is not None:
                    self._call_on_loop(self._schedule, delay_s)
                return
            batch = self._take()
        started = time.monotonic()
        outputs: torch.Tensor | Exception
        try:
            outputs = self._forward(torch.cat([each.image for each in batch]) if len(batch) > 1 else batch[0].image)
            assert len(outputs) == len(batch)
        except Exception as error:
            outputs = error
        times = BatchTimes([started - each.arrived for each in batch], time.monotonic() - started)
        self._call_on_loop(self._deliver, batch, outputs, times)
        try:
            self._executor.submit(self._compute)
        except RuntimeError:  # the executor was shut down: the service is closing
            self._computing = False

    def _deliver(self, batch: list[_Request], outputs: torch.Tensor | Exception, times: BatchTimes) -> None:
        """On the event loop: give each caller its row, or the batch's error."""
        for row, request in enumerate(batch):
            if request.result.done():
                continue
            if isinstance(outputs, Exception):
                request.result.set_exception(outputs)
            else:
                request.result.set_result(outputs[row : row + 1])
        if self._observe is not None and not isinstance(outputs, Exception):
            self._observe(times)

    def _call_on_loop(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop was closed: nobody waits any more
            self._closed = True

    def _delay_s(self) -> float | None:
        """Seconds until a batch is due, 0 or less if one is; None if no image is queued. The lock is held."""
        self._drop_cancelled()
        if not self._queues:
            return None
        queue = self._queues[self._oldest()]
        if len(queue) >= self._max_batch_size:
            return 0.0
        return queue[0].arrived + self._wait_s - time.monotonic()

    def _take(self) -> list[_Request]:
        """The next batch. The lock is held."""
        key = self._oldest()
        queue = self._queues[key]
        batch = [queue.popleft() for _ in range(min(len(queue), self._max_batch_size))]
        if not queue:
            del self._queues[key]
        return batch

    def _oldest(self) -> _Key:
        """The shape and dtype whose first image has waited longest. The lock is held, and an image is queued."""
        return min(self._queues, key=lambda key: self._queues[key][0].arrived)

    def _drop_cancelled(self) -> None:
        queues = {key: deque(each for each in queue if not each.result.done()) for key, queue in self._queues.items()}
        self._queues = {key: queue for key, queue in queues.items() if queue}
