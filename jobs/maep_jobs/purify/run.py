"""Purifies files, several at once, with an endpoint or in this process. Finished files are skipped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Protocol

from maep.errors import JobFailed, UserError
from maep.tracking.client import TrackingConfig
from maep.tracking.resolve import resolve
from maep_jobs.purify import image_files
from maep_jobs.purify.config import CHAMPION, PurifyConfig
from maep_jobs.purify.image_files import FilePair
from maep_jobs.terminal.progress import Bar
from maep_serve.client.client import AsyncClient, token_of_environment
from maep_serve.client.in_process import InProcess
from maep_serve.client.results import ProblemError, Purified
from maep_serve.config import ServeConfig

_OF_THE_IMAGE = (400, 413, 415, 422, 500, 504)
"""HTTP statuses that concern one image; other images may succeed."""


class _Purifier(Protocol):
    """An `AsyncClient`, or its equivalent in this process."""

    async def purify(self, image: bytes) -> Purified: ...


@dataclass
class Outcome:
    """Counts of the files so far."""

    total: int
    purified: int = 0
    skipped: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Number of files that need no more work."""
        return self.purified + self.skipped + len(self.failed)

    def __str__(self) -> str:
        parts = [f"{self.purified:,} purified"]
        parts += [f"{self.skipped:,} skipped (already done)"] if self.skipped else []
        parts += [f"{len(self.failed):,} failed"] if self.failed else []
        return ", ".join(parts)


def purify(settings: PurifyConfig, tracking: TrackingConfig, pairs: Sequence[FilePair]) -> tuple[Outcome, str]:
    """Purifies what is not done yet, with a progress bar; also returns the sha256 of the purifier.

    Raises UserError before anything is written, and JobFailed if it must stop midway.
    """
    with closing(Bar("purify")) as bar:
        return asyncio.run(_run(settings, tracking, pairs, bar))


async def _run(
    settings: PurifyConfig, tracking: TrackingConfig, pairs: Sequence[FilePair], bar: Bar
) -> tuple[Outcome, str]:
    outcome = Outcome(len(pairs))
    async with _opened(settings, tracking) as (purifier, sha256):
        started, remaining = time.monotonic(), iter(pairs)

        async def work() -> None:
            for pair in remaining:
                failure = await _one(purifier, sha256, pair, outcome)
                if failure is not None:
                    outcome.failed.append(failure)
                    bar.say(f"failed: {failure['file']}: {failure['reason']}")
                bar.show(outcome.done, outcome.total, _eta_s(outcome, time.monotonic() - started))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(settings.in_flight, len(pairs))):
                    group.create_task(work())
        except ExceptionGroup as group:
            first = group.exceptions[0]
            if not isinstance(first, UserError):
                raise
            done = f"{outcome.purified + outcome.skipped} of {outcome.total} files are done"
            raise JobFailed(f"{first}; {done}: re-run the same command to resume") from None
    return outcome, sha256


@asynccontextmanager
async def _opened(settings: PurifyConfig, tracking: TrackingConfig) -> AsyncIterator[tuple[_Purifier, str]]:
    """The purifier and its sha256. Raises UserError where it is not available."""
    if settings.server is not None:
        client = AsyncClient(
            settings.server, token_of_environment(), ca_file=settings.ca_file, num_connections=settings.in_flight
        )
        async with client:
            yield client, (await client.info()).purifier
        return
    artifact = resolve(settings.model or CHAMPION, tracking)
    limits = ServeConfig(
        str(artifact.folder),
        max_batch_size=settings.max_batch_size,
        batch_wait_ms=0,
        max_pixels=settings.max_pixels,
        max_pixels_in_flight=4 * settings.max_pixels,
        tile_size=settings.tile_size,
    )
    async with InProcess(artifact, limits) as local:
        yield local, local.purifier


async def _one(purifier: _Purifier, sha256: str, pair: FilePair, outcome: Outcome) -> dict[str, str] | None:
    """Purifies one file unless it is done. Returns why it failed, if it did.

    Raises UserError where every other file would fail too.
    """
    try:
        source = await asyncio.to_thread(pair.source.read_bytes)
    except OSError as error:
        return {"file": str(pair.source), "code": "unreadable", "reason": error.strerror or str(error)}
    if await asyncio.to_thread(image_files.is_complete, pair.target, image_files.stamp(sha256, source)):
        outcome.skipped += 1
        return None
    try:
        response = await purifier.purify(source)
    except ProblemError as problem:
        if problem.status not in _OF_THE_IMAGE:
            raise
        return {"file": str(pair.source), "code": problem.code, "reason": problem.detail}
    # after a rollout the endpoint's purifier is not the one of `sha256`
    made_by = image_files.stamp(response.purifier, source)
    await asyncio.to_thread(image_files.write, pair.target, response.image, made_by)
    outcome.purified += 1
    return None


def _eta_s(outcome: Outcome, elapsed_s: float) -> float | None:
    """Estimated from the files that were purified; skipped ones take no time."""
    worked = outcome.done - outcome.skipped
    return elapsed_s / worked * (outcome.total - outcome.done) if worked else None
