"""What stands before the models of one replica: bounds, time limits, and which version new requests get."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from maep_serve.config import ServeConfig
from maep_serve.engine.engine import Engine
from maep_serve.engine.loading import Models, warm
from maep_serve.http import images
from maep_serve.http.problems import Problem
from maep_serve.ray.metrics import Meter, Sink, forget

_RETRY = {"Retry-After": "1"}
_NUM_CODING_THREADS = 4  # a thread goes on when its caller has gone, so their number bounds what nobody waits for


class Service:
    """The engine of one replica and the bounds before it. `models` is given, or comes by `use`."""

    def __init__(self, config: ServeConfig, models: Models | None = None, sink: Sink = forget) -> None:
        self.config = config
        self.sink = sink
        self.num_in_flight = 0
        self.num_pixels_in_flight = 0
        self.coding = ThreadPoolExecutor(_NUM_CODING_THREADS, thread_name_prefix="coding")
        self._inference = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._engine: Engine | None = None
        if models is not None:
            self.use(models)

    @property
    def engine(self) -> Engine:
        """What a new request gets. Raises Problem not-ready until there are models."""
        if self._engine is None:
            raise Problem("not-ready", "the model is being loaded", {"Retry-After": "2"})
        return self._engine

    @property
    def models(self) -> Models:
        """The models of `engine`."""
        return self.engine.models

    @property
    def version(self) -> str:
        """The purifier's sha256, cut short, for metrics; empty until there is one."""
        return "" if self._engine is None else self._engine.models.purifier_sha256[:12]

    def use(self, models: Models) -> None:
        """From now on, new requests get `models`, which are warmed first; earlier ones end with what they began with.

        Blocks for a forward pass of a full batch. Raises ArtifactError as `warm`; then nothing has changed.
        """
        warm(models, 1)
        warm(models, self.config.max_batch_size)
        before, meter = self._engine, Meter(self.sink, models.purifier_sha256)
        self._engine = Engine(models, self.config, self._inference, self.coding, meter)
        if before is not None:
            before.meter.serving(False)
        meter.serving(True)

    async def close(self) -> None:
        """Ends the queues and the threads."""
        if self._engine is not None:
            await self._engine.close()
        for executor in (self._inference, self.coding):
            executor.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Counts a request while it is worked on. Raises Problem queue-full beyond the bound."""
        if self.num_in_flight >= self.config.most_in_flight:
            raise Problem("queue-full", f"{self.num_in_flight} requests are being worked on", _RETRY)
        self.num_in_flight += 1
        try:
            yield
        finally:
            self.num_in_flight -= 1

    @contextmanager
    def reservation(self, num_pixels: int) -> Iterator[None]:
        """Counts an image's pixels while they are in memory. Raises Problem queue-full beyond the bound.

        Small images pass: admission bounds their number, and they must not be refused because of a few large ones.
        """
        counted = num_pixels if num_pixels > images.SMALL else 0
        if counted and self.num_pixels_in_flight + counted > self.config.max_pixels_in_flight:
            raise Problem("queue-full", f"images of {self.num_pixels_in_flight} pixels are being worked on", _RETRY)
        self.num_pixels_in_flight += counted
        try:
            yield
        finally:
            self.num_pixels_in_flight -= counted

    def time_limit(self) -> _TimeLimit:
        """A block that may take request_timeout_s. Raises Problem timeout."""
        return _TimeLimit(self.config.request_timeout_s)


class _TimeLimit:
    """An `asyncio.timeout` whose end is the problem timeout."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)  # type: ignore[arg-type]
        except TimeoutError:
            logging.getLogger(__name__).warning("a request took longer than %g s", self._seconds)
            raise Problem("timeout", f"not done in {self._seconds:g} s", _RETRY) from None
