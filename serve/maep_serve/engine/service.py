"""Admission to one replica: limits on requests, pixels and time, and the version that new requests get."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from maep_serve import images
from maep_serve.config import ServeConfig
from maep_serve.engine.engine import Engine
from maep_serve.engine.loading import Models, warm
from maep_serve.engine.metrics import Metrics
from maep_serve.problems import Problem

_RETRY = {"Retry-After": "1"}
_NUM_CODEC_THREADS = 4  # a thread keeps running after its caller left, so their number bounds the abandoned work
_log = logging.getLogger(__name__)


class Service:
    """One replica's engine and its admission limits. `models` are given here, or later to `use`."""

    def __init__(self, config: ServeConfig, models: Models | None = None) -> None:
        self.config = config
        self.metrics = Metrics()
        self.num_in_flight = 0
        self.num_pixels_in_flight = 0
        self.codecs = ThreadPoolExecutor(_NUM_CODEC_THREADS, thread_name_prefix="codec")
        self._inference = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._engine: Engine | None = None
        if models is not None:
            self.use(models)

    @property
    def engine(self) -> Engine:
        """The engine for a new request. Raises Problem not-ready until there are models."""
        if self._engine is None:
            raise Problem("not-ready", "the model is still loading", {"Retry-After": "2"})
        return self._engine

    @property
    def models(self) -> Models:
        """The models of `engine`."""
        return self.engine.models

    @property
    def version(self) -> str:
        """`Models.version`, or an empty text before there are models."""
        return "" if self._engine is None else self._engine.models.version

    def use(self, models: Models) -> None:
        """Warm `models` and give them to new requests; requests in flight keep the models they started with.

        Blocks for a forward pass of a full batch. Raises ArtifactError as `warm` does, without changing anything.
        """
        warm(models, 1)
        warm(models, self.config.max_batch_size)
        self._engine = Engine(models, self.config, self._inference, self.codecs, self.metrics)
        self.metrics.serve(models.version)

    async def close(self) -> None:
        """Close the queues and stop the threads."""
        if self._engine is not None:
            await self._engine.close()
        for executor in (self._inference, self.codecs):
            executor.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Count a request as in flight. Raises Problem queue-full above the limit."""
        if self.num_in_flight >= self.config.most_in_flight:
            raise Problem("queue-full", f"{self.num_in_flight} requests are in flight", _RETRY)
        self.num_in_flight += 1
        try:
            yield
        finally:
            self.num_in_flight -= 1

    @contextmanager
    def reservation(self, num_pixels: int) -> Iterator[None]:
        """Count an image's pixels as in memory. Raises Problem queue-full above the limit.

        Small images are not counted: admission bounds their number, and a few large images must not block them.
        """
        counted = num_pixels if num_pixels > images.SMALL else 0
        if counted and self.num_pixels_in_flight + counted > self.config.max_pixels_in_flight:
            raise Problem("queue-full", f"images with {self.num_pixels_in_flight} pixels are in flight", _RETRY)
        self.num_pixels_in_flight += counted
        try:
            yield
        finally:
            self.num_pixels_in_flight -= counted

    @asynccontextmanager
    async def time_limit(self) -> AsyncIterator[None]:
        """Limit the block to request_timeout_s. Raises Problem timeout."""
        seconds = self.config.request_timeout_s
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            _log.warning("request canceled after %g s: reduce the image size or add replicas", seconds)
            raise Problem("timeout", f"not finished within {seconds:g} s", _RETRY) from None
