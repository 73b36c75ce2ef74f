"""What the routes do, without HTTP and without Ray: purify, classify, attack; batched, bounded, off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.attacks.run import attack
from maep.models import tiles
from maep_serve import images
from maep_serve.batching import Batcher
from maep_serve.config import ServeConfig
from maep_serve.loading import Models, load_models, warm
from maep_serve.problems import Problem

_RETRY = {"Retry-After": "1"}
_NUM_CODING_THREADS = 4  # a thread goes on when its caller has gone, so their number bounds what nobody waits for


@dataclass(frozen=True)
class Classified:
    """Class probabilities, float32 [classes], of an image and of its purified form."""

    before: torch.Tensor
    after: torch.Tensor


@dataclass(frozen=True)
class Attacked:
    """One attack on the bare classifier: uint8 [1, 3, H, W] images and float32 [classes] probabilities."""

    label: int
    clean: torch.Tensor
    attacked: torch.Tensor
    purified: torch.Tensor
    probabilities: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Service:
    """The models of one replica and the queues before them. `models` is given, or loaded by `load`."""

    def __init__(self, config: ServeConfig, models: Models | None = None) -> None:
        self.config = config
        self._models: Models | None = None
        self.num_in_flight = 0
        self.num_pixels_in_flight = 0
        self.coding = ThreadPoolExecutor(_NUM_CODING_THREADS, thread_name_prefix="coding")
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="inference")
        wait_s = config.batch_wait_ms / 1000
        self.purifying = Batcher(self._purify_batch, self._executor, config.max_batch_size, wait_s)
        self.classifying = Batcher(self._classify_batch, self._executor, config.max_batch_size, 0)
        if models is not None:
            self._use(models)

    @property
    def ready(self) -> bool:
        """Whether the models are loaded, verified and warmed."""
        return self._models is not None

    @property
    def models(self) -> Models:
        """The models. Raises Problem not-ready until they are loaded."""
        if self._models is None:
            raise Problem("not-ready", "the model is being loaded", {"Retry-After": "2"})
        return self._models

    def load(self) -> None:
        """Loads and warms the models; blocks for seconds. Raises UserError as `load_models` does."""
        self._use(load_models(self.config))

    async def close(self) -> None:
        """Ends the queues and the threads."""
        await self.purifying.close()
        await self.classifying.close()
        for executor in (self._executor, self.coding):
            executor.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Counts a request while it is worked on. Raises Problem queue-full beyond the bound."""
        if self.num_in_flight >= self.config.max_queued_requests + self.config.max_batch_size:
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

    async def purify(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [1, 3, H, W] -> purified, the same shape and type."""
        models = self.models
        height, width = pixels.shape[-2:]
        padded = tiles.pad(pixels, models.stride)
        side = tiles.tile_side(models.image_size, models.stride, self.config.tile_size)
        places = tiles.corners(padded.shape[2], padded.shape[3], side)
        pieces = tiles.cut(padded, places, side)
        purified: list[torch.Tensor] = []
        for start in range(0, len(pieces), self.config.max_batch_size):  # one large image must not fill the queue
            part = pieces[start : start + self.config.max_batch_size]
            purified += await asyncio.gather(*(self.purifying.submit(piece) for piece in part))
        whole = tiles.blend(purified, places, padded.shape)
        return images.to_uint8(whole[..., :height, :width])

    async def classify(self, pixels: torch.Tensor) -> Classified:
        """Probabilities before and after; after is that of the very picture `purify` answers, rounded to 8 bits."""
        self.require_classifier()
        before = asyncio.ensure_future(self._probabilities(pixels))
        try:
            after = await self._probabilities(await self.purify(pixels))
            return Classified(await before, after)
        finally:
            before.cancel()

    async def attack(self, pixels: torch.Tensor, config: AttackConfig, seed: int = 0) -> Attacked:
        """Attacks the bare classifier (it never sees the purifier: threat model `oblivious`) and purifies the result.

        The label to be moved away from is the classifier's own answer on the clean image.
        """
        self.require_classifier()
        clean = await self._probabilities(pixels)
        label = int(clean.argmax())
        loop = asyncio.get_running_loop()
        attacked = await loop.run_in_executor(self._executor, self._attack_now, pixels, label, config, seed)
        purified = await self.purify(attacked)
        rest = await asyncio.gather(self._probabilities(attacked), self._probabilities(purified))
        return Attacked(label, pixels, attacked, purified, (clean, rest[0], rest[1]))

    def require_classifier(self) -> None:
        """Raises Problem no-classifier where the endpoint has none."""
        if self.models.classifier is None:
            raise Problem("no-classifier", "start the endpoint with a classifier to compare answers")

    async def _probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        try:
            logits = await self.classifying.submit(pixels)
        except (RuntimeError, AssertionError, ValueError) as error:
            detail = f"{pixels.shape[3]} x {pixels.shape[2]} pixels: {' '.join(str(error).split())[:120]}"
            raise Problem("unsupported-size", detail) from None
        return logits[0].softmax(0)

    def _use(self, models: Models) -> None:
        warm(models, 1)
        warm(models, self.config.max_batch_size)
        self._models = models

    # The queues hold 8 bits a channel, a quarter of what the models are given.
    @torch.inference_mode()
    def _purify_batch(self, batch: torch.Tensor) -> torch.Tensor:
        purified: torch.Tensor = self.models.purifier(images.to_float(batch))
        return purified

    @torch.inference_mode()
    def _classify_batch(self, batch: torch.Tensor) -> torch.Tensor:
        assert self.models.classifier is not None
        logits: torch.Tensor = self.models.classifier(images.to_float(batch))
        return logits

    def _attack_now(self, pixels: torch.Tensor, label: int, config: AttackConfig, seed: int) -> torch.Tensor:
        assert self.models.classifier is not None
        keys = seeding.mix(seed, torch.zeros(1, dtype=torch.int64))
        attacked = attack(self.models.classifier, images.to_float(pixels), torch.tensor([label]), config, keys)
        return images.to_uint8(attacked)


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
