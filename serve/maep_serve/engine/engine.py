"""Compute purifications, classifications and attacks with one version of the models, in batches, off the event loop."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.attacks.run import attack
from maep.models import tiles
from maep_serve import images
from maep_serve.config import ServeConfig
from maep_serve.engine import suspicion
from maep_serve.engine.batching import Batcher
from maep_serve.engine.loading import Models
from maep_serve.engine.metrics import Metrics, Stage
from maep_serve.problems import Problem

_T = TypeVar("_T")
_OUT_OF_MEMORY = "can't allocate memory"


@dataclass(frozen=True)
class Comparison:
    """Class probabilities, float32 [classes], of an image before and after purification, and how much they differ.

    distance: root mean square of the change that purification makes, in [0, 1].
    score: how suspicious the image is, and `suspected` whether above the threshold (see `suspicion`); both None
        without a calibration for these models and this image size.
    """

    before: torch.Tensor
    after: torch.Tensor
    distance: float
    changed: bool
    score: float | None = None
    suspected: bool | None = None


@dataclass(frozen=True)
class Attacked:
    """One attack on the bare classifier: uint8 [1, 3, H, W] images and float32 [classes] probabilities."""

    label: int
    clean: torch.Tensor
    attacked: torch.Tensor
    purified: torch.Tensor
    probabilities: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Tiled:
    """Images cut into tiles [1, 3, h, w]: all images at the first corner, then at the next. `shape`: of the whole."""

    shape: torch.Size
    corners: list[tuple[int, int]]
    tiles: list[torch.Tensor]


class Engine:
    """The models of one version and their batchers. A request keeps the engine it started with.

    Images are uint8 or float32 in [0, 1], [B, 3, H, W]; results have the same type. The queue holds
    that type, because uint8 takes a quarter of the memory of float32.
    """

    def __init__(
        self, models: Models, config: ServeConfig, inference: Executor, codecs: Executor, metrics: Metrics
    ) -> None:
        self.models = models
        self._config = config
        self._inference = inference
        self._codecs = codecs
        self._metrics = metrics

        def batcher(model: str, forward: Callable[[torch.Tensor], torch.Tensor], wait_s: float) -> Batcher:
            observe = functools.partial(metrics.batch, models.version, model)
            return Batcher(forward, inference, config.max_batch_size, wait_s, observe)

        self.purifying = batcher("purifier", self._purify_batch, config.batch_wait_ms / 1000)
        self.classifying = batcher("classifier", self._classify_batch, 0)

    async def close(self) -> None:
        """Close the queues."""
        await self.purifying.close()
        await self.classifying.close()

    async def run_codec(self, stage: Stage | None, small: bool, function: Callable[..., _T], *arguments: Any) -> _T:
        """Run `function(*arguments)`, which decodes or encodes: in a thread, or inline where the image is `small`.

        Its time is recorded as `stage`; before `decode`, the wait for a thread is recorded as `queue`.
        """
        submitted = time.monotonic()
        if small:
            result, started, ended = _timed(function, *arguments)
        else:
            loop = asyncio.get_running_loop()
            result, started, ended = await loop.run_in_executor(self._codecs, _timed, function, *arguments)
        if stage == "decode":
            self._metrics.stage(self.models.version, "queue", started - submitted)
        if stage is not None:
            self._metrics.stage(self.models.version, stage, ended - started)
        return result

    async def purify(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> purified, same shape and type. Sides longer than a tile are purified in tiles."""
        tiled = await self._off_loop(pixels, self._cut, pixels)
        purified: list[torch.Tensor] = []
        for start in range(0, len(tiled.tiles), self._config.max_batch_size):  # one request must not fill the queue
            part = tiled.tiles[start : start + self._config.max_batch_size]
            purified += await asyncio.gather(*map(self.purifying.submit, part))
        return await self._off_loop(pixels, self._blend, pixels, tiled, purified)

    async def classify(self, pixels: torch.Tensor) -> Comparison:
        """Classify one image and what `purify` makes of it (rounded to 8 bits for uint8)."""
        self.require_classifier()
        pending = asyncio.ensure_future(self._probabilities(pixels))
        try:
            purified = await self.purify(pixels)
            before = await pending  # first: asyncio logs an exception that is never retrieved
            after = await self._probabilities(purified)
        finally:
            pending.cancel()
        distance = await self._off_loop(pixels, suspicion.distance, pixels, purified)
        changed = int(before.argmax()) != int(after.argmax())
        calibration = self.models.calibration
        if calibration is None or calibration.image_size != tuple(pixels.shape[-2:]):
            return Comparison(before, after, distance, changed)
        score, suspected = calibration.judge(distance, changed)
        self._metrics.suspicion(self.models.version, score, suspected)
        return Comparison(before, after, distance, changed, score, suspected)

    async def attack(self, pixels: torch.Tensor, config: AttackConfig, seed: int = 0) -> Attacked:
        """Attack the bare classifier (threat model `oblivious`: the purifier is not seen) and purify the result.

        The classifier's prediction for the clean image, uint8 [1, 3, H, W], serves as the true label.
        """
        self.require_classifier()
        clean = await self._probabilities(pixels)
        label = int(clean.argmax())
        loop = asyncio.get_running_loop()
        attacked = await loop.run_in_executor(self._inference, self._attack_now, pixels, label, config, seed)
        purified = await self.purify(attacked)
        rest = await asyncio.gather(self._probabilities(attacked), self._probabilities(purified))
        return Attacked(label, pixels, attacked, purified, (clean, rest[0], rest[1]))

    def require_classifier(self) -> None:
        """Raises Problem no-classifier if the endpoint has none."""
        if self.models.classifier is None:
            raise Problem("no-classifier", "this endpoint was started without --classifier")

    async def _off_loop(self, pixels: torch.Tensor, function: Callable[..., _T], *arguments: Any) -> _T:
        """Run `function(*arguments)`, off the event loop for large images, where it can take a second."""
        if pixels.numel() <= 3 * images.SMALL:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._inference, function, *arguments)

    def _cut(self, pixels: torch.Tensor) -> _Tiled:
        models = self.models
        padded = tiles.pad(pixels, models.stride)
        side = tiles.tile_side(models.image_size, models.stride, self._config.tile_size)
        corners = tiles.corners(padded.shape[2], padded.shape[3], side)
        cut = [image for tile in tiles.cut(padded, corners, side) for image in torch.split(tile, 1)]
        return _Tiled(padded.shape, corners, cut)

    def _blend(self, pixels: torch.Tensor, tiled: _Tiled, purified: list[torch.Tensor]) -> torch.Tensor:
        """The purified tiles as images of the shape and type of `pixels`."""
        num_images, _, height, width = pixels.shape
        by_corner = [purified[start : start + num_images] for start in range(0, len(purified), num_images)]
        batches = [group[0] if num_images == 1 else torch.cat(group) for group in by_corner]
        whole = tiles.blend(batches, tiled.corners, tiled.shape)[..., :height, :width]
        return images.to_uint8(whole) if pixels.dtype == torch.uint8 else whole.clamp(0, 1)

    async def _probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        try:
            logits = await self.classifying.submit(pixels)
        except (RuntimeError, AssertionError, ValueError) as error:
            if _OUT_OF_MEMORY in str(error):  # torch has no exception class for it
                raise
            detail = f"{pixels.shape[3]} x {pixels.shape[2]} pixels: {' '.join(str(error).split())[:120]}"
            raise Problem("unsupported-size", detail) from None
        return logits[0].softmax(0)

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


def _timed(function: Callable[..., _T], *arguments: Any) -> tuple[_T, float, float]:
    started = time.monotonic()
    result = function(*arguments)
    return result, started, time.monotonic()
