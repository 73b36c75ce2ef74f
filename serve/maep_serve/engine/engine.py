"""One version of the models at work: what is done with an image, in batches, off the event loop."""

from __future__ import annotations

import asyncio
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
from maep_serve.config import ServeConfig
from maep_serve.engine import suspicion
from maep_serve.engine.batching import Batcher
from maep_serve.engine.loading import Models
from maep_serve.http import images
from maep_serve.http.problems import Problem
from maep_serve.ray.metrics import Meter, Stage

_T = TypeVar("_T")
_NO_MEMORY = "can't allocate memory"


@dataclass(frozen=True)
class Classified:
    """Class probabilities, float32 [classes], of an image and of its purified form; and what lies between them.

    distance: root mean square of what purification changed, in [0, 1].
    score: how suspicious that is, and `suspected` whether too much so (see `suspicion`); None where nothing
        was calibrated for these models and this image size.
    """

    before: torch.Tensor
    after: torch.Tensor
    distance: float
    changed: bool
    score: float | None
    suspected: bool | None


@dataclass(frozen=True)
class Attacked:
    """One attack on the bare classifier: uint8 [1, 3, H, W] images and float32 [classes] probabilities."""

    label: int
    clean: torch.Tensor
    attacked: torch.Tensor
    purified: torch.Tensor
    probabilities: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Cut:
    """Images in pieces: each tile of each image, [1, 3, h, w], those of one place together; `shape` of the whole."""

    shape: torch.Size
    places: list[tuple[int, int]]
    pieces: list[torch.Tensor]


class Engine:
    """The models of one release and the batches before them. A request keeps the engine that it began with.

    Images are uint8 or float32 in [0, 1], [B, 3, H, W]; answers are of the same type. The queues hold them as they
    came: 8 bits a channel are a quarter of what the models are given.
    """

    def __init__(self, models: Models, config: ServeConfig, executor: Executor, coding: Executor, meter: Meter) -> None:
        self.models = models
        self.meter = meter
        self._config = config
        self._executor = executor
        self._coding = coding
        wait_s = config.batch_wait_ms / 1000
        self.purifying = Batcher(
            self._purify_batch, executor, config.max_batch_size, wait_s, lambda times: meter.batch("purifier", times)
        )
        self.classifying = Batcher(
            self._classify_batch, executor, config.max_batch_size, 0, lambda times: meter.batch("classifier", times)
        )

    async def close(self) -> None:
        """Ends the queues."""
        await self.purifying.close()
        await self.classifying.close()

    async def coded(self, stage: Stage | None, small: bool, function: Callable[..., _T], *arguments: Any) -> _T:
        """`function(*arguments)`, which decodes or encodes; in a thread, unless it is `small`.

        Its time is that of `stage`; before `decode` lies `queue`, the wait for a thread.
        """
        asked = time.monotonic()
        if small:
            result, began, ended = _timed(function, *arguments)
        else:
            loop = asyncio.get_running_loop()
            result, began, ended = await loop.run_in_executor(self._coding, _timed, function, *arguments)
        if stage == "decode":
            self.meter.stage("queue", began - asked)
        if stage is not None:
            self.meter.stage(stage, ended - began)
        return result

    async def purify(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> purified, the same shape and type. Sides longer than a tile are purified in tiles."""
        cut = await self._aside(pixels, self._cut, pixels)
        purified: list[torch.Tensor] = []
        for start in range(0, len(cut.pieces), self._config.max_batch_size):  # one request must not fill the queue
            part = cut.pieces[start : start + self._config.max_batch_size]
            purified += await asyncio.gather(*map(self.purifying.submit, part))
        return await self._aside(pixels, self._join, pixels, cut, purified)

    async def classify(self, pixels: torch.Tensor) -> Classified:
        """Of one image. `after` is that of the very picture `purify` answers: uint8 is rounded to 8 bits."""
        self.require_classifier()
        asked = asyncio.ensure_future(self._probabilities(pixels))
        try:
            purified = await self.purify(pixels)
            before = await asked  # first: asyncio complains of an error that nobody took
            after = await self._probabilities(purified)
        finally:
            asked.cancel()
        distance = await self._aside(pixels, suspicion.distance, pixels, purified)
        changed = int(before.argmax()) != int(after.argmax())
        calibration = self.models.calibration
        if calibration is None or calibration.image_size != tuple(pixels.shape[-2:]):
            return Classified(before, after, distance, changed, None, None)
        score, suspected = calibration.judge(distance, changed)
        self.meter.suspicion(score, suspected)
        return Classified(before, after, distance, changed, score, suspected)

    async def attack(self, pixels: torch.Tensor, config: AttackConfig, seed: int = 0) -> Attacked:
        """Attacks the bare classifier (it never sees the purifier: threat model `oblivious`) and purifies the result.

        The label to be moved away from is the classifier's own answer on the clean image, uint8 [1, 3, H, W].
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

    async def _aside(self, pixels: torch.Tensor, function: Callable[..., _T], *arguments: Any) -> _T:
        """`function(*arguments)`: where `pixels` are many it takes up to a second, so not on the event loop."""
        if pixels.numel() <= 3 * images.SMALL:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def _cut(self, pixels: torch.Tensor) -> _Cut:
        models = self.models
        padded = tiles.pad(pixels, models.stride)
        side = tiles.tile_side(models.image_size, models.stride, self._config.tile_size)
        places = tiles.corners(padded.shape[2], padded.shape[3], side)
        pieces = [piece for tile in tiles.cut(padded, places, side) for piece in torch.split(tile, 1)]
        return _Cut(padded.shape, places, pieces)

    def _join(self, pixels: torch.Tensor, cut: _Cut, purified: list[torch.Tensor]) -> torch.Tensor:
        """The purified pieces as images of the shape and type of `pixels`."""
        num_images, _, height, width = pixels.shape
        grids = [purified[start : start + num_images] for start in range(0, len(purified), num_images)]
        blended = tiles.blend(
            [grid[0] if num_images == 1 else torch.cat(grid) for grid in grids], cut.places, cut.shape
        )
        whole = blended[..., :height, :width]
        return images.to_uint8(whole) if pixels.dtype == torch.uint8 else whole.clamp(0, 1)

    async def _probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        try:
            logits = await self.classifying.submit(pixels)
        except (RuntimeError, AssertionError, ValueError) as error:
            if _NO_MEMORY in str(error):  # torch has no class for it; the caller's size is not at fault
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
    began = time.monotonic()
    result = function(*arguments)
    return result, began, time.monotonic()
