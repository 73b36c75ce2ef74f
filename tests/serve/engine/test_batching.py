"""Requests of equal shape share forward passes; one batch fills while another computes; each caller gets its row."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from maep_serve.engine.batching import Batcher


class Doubling:
    """Doubles its input once `gate` opens, and records the shapes of its batches."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(batch.shape))
        self.entered.set()
        assert self.gate.wait(30)
        if batch.isnan().any():
            raise ArithmeticError("NaN")
        return batch * 2


def run(forward: Doubling, max_batch_size: int, wait_s: float, body: Any) -> Any:
    async def main() -> Any:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(forward, executor, max_batch_size, wait_s)
            try:
                return await asyncio.wait_for(body(batcher), 30)
            finally:
                forward.gate.set()
                await batcher.close()

    return asyncio.run(main())


async def entered(forward: Doubling) -> None:
    await asyncio.to_thread(forward.entered.wait, 30)


def image(value: float, side: int = 2) -> torch.Tensor:
    return torch.full((1, 3, side, side), float(value))


def start(coroutine: Coroutine[Any, Any, torch.Tensor]) -> asyncio.Task[torch.Tensor]:
    return asyncio.get_running_loop().create_task(coroutine)


def test_a_batch_refills_while_one_computes():
    forward = Doubling()

    async def body(batcher: Batcher) -> None:
        first = start(batcher.submit(image(0)))
        await entered(forward)
        rest = [start(batcher.submit(image(i))) for i in range(1, 11)]
        await asyncio.sleep(0)
        forward.gate.set()
        answers = await asyncio.gather(first, *rest)
        assert [float(answer.mean()) for answer in answers] == [2.0 * i for i in range(11)]
        assert all(answer.shape == (1, 3, 2, 2) for answer in answers)

    run(forward, 8, 0, body)
    assert [shape[0] for shape in forward.shapes] == [1, 8, 2]


def test_shapes_are_never_mixed_and_the_oldest_goes_first():
    forward = Doubling()

    async def body(batcher: Batcher) -> None:
        first = start(batcher.submit(image(0)))
        await entered(forward)
        rest = [start(batcher.submit(image(i, side=3 if i % 2 else 2))) for i in range(1, 7)]
        await asyncio.sleep(0)
        forward.gate.set()
        await asyncio.gather(first, *rest)

    run(forward, 8, 0, body)
    assert forward.shapes == [(1, 3, 2, 2), (3, 3, 3, 3), (3, 3, 2, 2)]


def test_a_batch_waits_for_more_images():
    forward = Doubling()
    forward.gate.set()

    async def body(batcher: Batcher) -> None:
        first = start(batcher.submit(image(0)))
        await asyncio.sleep(0)
        await asyncio.gather(first, batcher.submit(image(1)))

    run(forward, 2, 20.0, body)  # full at two, so the 20 s are never waited
    assert forward.shapes == [(2, 3, 2, 2)]


def test_one_callers_error_leaves_the_batcher_alive():
    forward = Doubling()
    forward.gate.set()

    async def body(batcher: Batcher) -> float:
        with pytest.raises(ArithmeticError):
            await batcher.submit(image(float("nan")))
        return float((await batcher.submit(image(3))).mean())

    assert run(forward, 4, 0, body) == 6


def test_cancelled_requests_are_not_computed():
    forward = Doubling()

    async def body(batcher: Batcher) -> None:
        first = start(batcher.submit(image(0)))
        await entered(forward)
        gone = [start(batcher.submit(image(i))) for i in (1, 2, 3)]
        stays = start(batcher.submit(image(4)))
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        forward.gate.set()
        await asyncio.gather(first, stays)

    run(forward, 8, 0, body)
    assert [shape[0] for shape in forward.shapes] == [1, 1]
