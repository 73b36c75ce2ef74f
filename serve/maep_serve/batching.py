"""Dynamic batching inside one event loop: requests of equal shape share a forward pass.

While a batch computes, the next one fills; it is closed only when the computing thread is free. (A batcher that
closes the next batch as soon as the running one starts keeps batches small under load.)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import torch

Key = tuple[int, ...]


@dataclass(frozen=True)
class _Job:
    image: torch.Tensor
    answer: asyncio.Future[torch.Tensor]
    arrived: float


class Batcher:
    """Runs `forward` on batches of what `submit` was given, one batch at a time, in `executor`.

    forward: [B, ...] -> [B, ...]; the answer's row i belongs to the input's row i. A batch of one is passed on
    unchanged, so that its answer equals an offline call bit for bit.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        executor: Executor,
        max_batch_size: int,
        wait_s: float,
    ) -> None:
        self._forward = forward
        self._executor = executor
        self._max_batch_size = max_batch_size
        self._wait_s = wait_s
        self._waiting: dict[Key, deque[_Job]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.num_batches = 0
        self.num_images = 0

    async def submit(self, image: torch.Tensor) -> torch.Tensor:
        """The answer, [1, ...], for `image`, [1, ...]. A cancelled caller's image is dropped from the queue."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        job = _Job(image, loop.create_future(), time.monotonic())
        self._waiting.setdefault(tuple(image.shape), deque()).append(job)
        self._changed.set()
        return await job.answer

    async def close(self) -> None:
        """Ends the batcher; what still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for jobs in self._waiting.values():
            for job in jobs:
                job.answer.cancel()
        self._waiting.clear()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            images = torch.cat([job.image for job in batch]) if len(batch) > 1 else batch[0].image
            self.num_batches += 1
            self.num_images += len(batch)
            try:
                answers = await loop.run_in_executor(self._executor, self._forward, images)
                assert len(answers) == len(batch)
            except Exception as error:
                for job in batch:
                    if not job.answer.done():
                        job.answer.set_exception(error)
                continue
            for row, job in enumerate(batch):
                if not job.answer.done():
                    job.answer.set_result(answers[row : row + 1])

    async def _next_batch(self) -> list[_Job]:
        """Waits for work, then for a full batch or the end of the oldest job's waiting time."""
        while True:
            self._changed.clear()
            key = self._oldest()
            if key is None:
                await self._changed.wait()
                continue
            jobs = self._waiting[key]
            left = jobs[0].arrived + self._wait_s - time.monotonic()
            if len(jobs) >= self._max_batch_size or left <= 0:
                batch = [jobs.popleft() for _ in range(min(len(jobs), self._max_batch_size))]
                if not jobs:
                    del self._waiting[key]
                return batch
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                continue

    def _oldest(self) -> Key | None:
        """The shape whose first live job has waited longest; jobs whose caller has gone are dropped."""
        for key in list(self._waiting):
            live = deque(job for job in self._waiting[key] if not job.answer.done())
            if live:
                self._waiting[key] = live
            else:
                del self._waiting[key]
        return min(self._waiting, key=lambda key: self._waiting[key][0].arrived, default=None)
