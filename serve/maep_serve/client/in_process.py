"""The endpoint's service in this process, without HTTP; it has the `purify` of `AsyncClient`."""

from __future__ import annotations

import asyncio

from maep.artifact import Artifact
from maep_serve import images
from maep_serve.client.results import ProblemError, Purified
from maep_serve.config import ServeConfig
from maep_serve.engine.loading import build_models
from maep_serve.engine.service import Service
from maep_serve.problems import Problem

_LARGE = 2**20  # pixels


class InProcess:
    """Purifies encoded images with the purifier in `artifact`; concurrent calls share batches, as on a server.

    config: its limits apply, its `model` is ignored. Raises what `maep_serve.engine.loading.build_models` does.
    """

    def __init__(self, artifact: Artifact, config: ServeConfig) -> None:
        self._service = Service(config, build_models(artifact, config))
        # A large image fills batches with its own tiles; several at once would only take memory.
        self._large = asyncio.Lock()

    @property
    def purifier(self) -> str:
        """The artifact's sha256."""
        return self._service.models.purifier_sha256

    async def purify(self, image: bytes) -> Purified:
        """Purify an encoded image; the result is PNG. Raises ProblemError for an unusable image."""
        try:
            limit = self._service.config.max_pixels
            if await asyncio.to_thread(images.num_pixels, image, limit) <= _LARGE:
                return await self._purify(image)
            async with self._large:
                return await self._purify(image)
        except Problem as problem:
            raise ProblemError(problem.status, problem.code, problem.detail) from None

    async def _purify(self, image: bytes) -> Purified:
        pixels = await asyncio.to_thread(images.decode, image, self._service.config.max_pixels)
        purified = await self._service.engine.purify(pixels)
        png = await asyncio.to_thread(images.encode, purified)
        return Purified(png, "image/png", self.purifier, None)

    async def __aenter__(self) -> InProcess:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._service.close()
