"""`maep purify`: purify image files and folders, through an endpoint or in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from maep import config
from maep.errors import UserError
from maep.tracking.purifier_ref import PurifierRef
from maep_jobs import image_files
from maep_jobs.arguments import Job, local_folder, parse, parser, plan_text
from maep_jobs.failure import JobFailed
from maep_jobs.image_files import FilePair, FoundImages
from maep_jobs.terminal.progress import Bar
from maep_jobs.terminal.standard_output import print_json
from maep_serve.config import ServeConfig

if TYPE_CHECKING:
    from maep_serve.client.results import Purified

_EXAMPLES = """  maep purify photo.jpg -o clean.png --model bundled:cifar10
  maep purify photos more/cat.png -o clean --server http://127.0.0.1:8000
  maep purify photos -o clean --model models:/purifier@champion --json"""
_CHAMPION = PurifierRef.parse("models:/purifier@champion")
_IMAGE_ERRORS = (400, 413, 415, 422, 500, 504)  # problems of one image; others may still succeed


@dataclass(frozen=True)
class PurifyConfig:
    """The purifier, and limits."""

    model: str | None = config.key(
        None, f"Purifier to load in this process, any purifier URI; null: {_CHAMPION}.", decides=True
    )
    server: str | None = config.key(
        None, "URL of an endpoint to use instead; its token is read from $MAEP_SERVE_TOKEN.", decides=True
    )
    ca_file: str | None = config.key(
        None, "File of certificates to trust for https; null: the system's.", decides=False
    )
    in_flight: int = config.key(
        32, "Images in progress at a time; at least the endpoint's max_batch_size fills its batches.", decides=False
    )
    max_pixels: int = config.key(4096 * 4096, "Most pixels of an image, in this process.", decides=False)
    tile_size: int | None = config.key(
        None,
        "Side in pixels of the tiles of larger images, in this process; null: as `maep serve`.",
        decides=True,
    )
    max_batch_size: int = config.key(32, "Most images in one forward pass, in this process.", decides=False)

    def __post_init__(self) -> None:
        """Raises ValueError naming the key that cannot be used."""
        if self.model is not None and self.server is not None:
            raise ValueError("server: the endpoint has its own purifier: give either --server or --model")
        if self.model is not None:
            PurifierRef.parse(self.model)
        for name in ("in_flight", "max_pixels", "max_batch_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")


class _Purifier(Protocol):
    """An `AsyncClient` or an `InProcess`."""

    async def purify(self, image: bytes) -> Purified: ...


@dataclass
class Outcome:
    """The state of the files so far."""

    total: int
    purified: int = 0
    skipped: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Files that need no more work."""
        return self.purified + self.skipped + len(self.failed)


def main(argv: Sequence[str]) -> int:
    """Run the verb; exit status 1 if a file failed."""
    made = parser("purify", "Purify images. Re-run the same command to resume.", _EXAMPLES, output=False)
    made.add_argument("inputs", nargs="+", type=Path, metavar="IN", help="an image, or a folder of images")
    made.add_argument("-o", "--output", type=local_folder, required=True, metavar="OUT", help="a folder, or a .png")
    made.add_argument("--server", metavar="URL", help="an endpoint; its token is read from MAEP_SERVE_TOKEN")
    made.add_argument("--model", metavar="URI", help=f"a purifier to load in this process (default: {_CHAMPION})")
    job = _with_options(parse(made, PurifyConfig, argv))
    found = image_files.find(job.options.inputs, job.options.output)
    if job.options.dry_run:
        print(plan_text(job, [_plan(job, found)]), end="")
        return 0
    with closing(Bar("purify")) as bar:
        outcome, purifier = asyncio.run(_run(job, found.pairs, bar))
    if job.options.json:
        counts = {"purified": outcome.purified, "skipped": outcome.skipped, "failed": outcome.failed}
        print_json(counts | {"output": str(job.options.output), "purifier": purifier})
    else:
        print(_summary(job, outcome, purifier))
    return 1 if outcome.failed else 0


def _with_options(job: Job[PurifyConfig]) -> Job[PurifyConfig]:
    """`job` with the two keys that are also options, so that they may precede IN."""
    given = {key: value for key in ("server", "model") if (value := getattr(job.options, key)) is not None}
    return dataclasses.replace(job, settings=config.build(PurifyConfig, config.to_dict(job.settings) | given))


async def _run(job: Job[PurifyConfig], pairs: Sequence[FilePair], bar: Bar) -> tuple[Outcome, str]:
    """Purify the files that are not done. Raises UserError before anything is written, JobFailed after that."""
    outcome = Outcome(len(pairs))
    async with _opened(job) as (purifier, sha256):
        started, remaining = time.monotonic(), iter(pairs)

        async def work() -> None:
            for pair in remaining:
                failure = await _purify_file(purifier, sha256, pair, outcome)
                if failure is not None:
                    outcome.failed.append(failure)
                    bar.say(f"failed: {failure['file']}: {failure['reason']}")
                bar.show(outcome.done, outcome.total, _eta_s(outcome, time.monotonic() - started))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(job.settings.in_flight, len(pairs))):
                    group.create_task(work())
        except ExceptionGroup as group:
            first = group.exceptions[0]
            if not isinstance(first, UserError):
                raise
            done = f"{outcome.purified + outcome.skipped} of {outcome.total} files are done"
            raise JobFailed(f"{first}; {done}: re-run the same command to resume") from None
    return outcome, sha256


@asynccontextmanager
async def _opened(job: Job[PurifyConfig]) -> AsyncIterator[tuple[_Purifier, str]]:
    """The purifier and its sha256. Raises UserError if it is unavailable."""
    settings = job.settings
    if settings.server is not None:
        from maep_serve.client.client import AsyncClient, token_of_environment

        client = AsyncClient(
            settings.server, token_of_environment(), ca_file=settings.ca_file, num_connections=settings.in_flight
        )
        async with client:
            yield client, (await client.info()).purifier
        return
    from maep.tracking.resolve import resolve
    from maep_serve.client.in_process import InProcess

    artifact = resolve(settings.model or _CHAMPION, job.tracking)
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


async def _purify_file(purifier: _Purifier, sha256: str, pair: FilePair, outcome: Outcome) -> dict[str, str] | None:
    """Purify one file unless it is done; returns the reason if that fails.

    Raises UserError for a failure that would meet every file.
    """
    from maep_serve.client.results import ProblemError

    try:
        source = await asyncio.to_thread(pair.source.read_bytes)
    except OSError as error:
        return {"file": str(pair.source), "code": "unreadable", "reason": error.strerror or str(error)}
    if await asyncio.to_thread(image_files.is_complete, pair.target, image_files.stamp(sha256, source)):
        outcome.skipped += 1
        return None
    try:
        purified = await purifier.purify(source)
    except ProblemError as problem:
        if problem.status not in _IMAGE_ERRORS:
            raise
        return {"file": str(pair.source), "code": problem.code, "reason": problem.detail}
    # The stamp names the purifier of this image: a rollout can change it during the run.
    stamp = image_files.stamp(purified.purifier, source)
    await asyncio.to_thread(image_files.write, pair.target, purified.image, stamp)
    outcome.purified += 1
    return None


def _eta_s(outcome: Outcome, elapsed_s: float) -> float | None:
    """From the rate of purified files; skipped files take no time."""
    worked = outcome.done - outcome.skipped
    return elapsed_s / worked * (outcome.total - outcome.done) if worked else None


def _plan(job: Job[PurifyConfig], found: FoundImages) -> str:
    by = job.settings.server or job.settings.model or _CHAMPION
    others = f"; ignores {found.num_others:,} other files" if found.num_others else ""
    return f"purifies {len(found.pairs):,} images into {job.options.output} with {by}{others}"


def _summary(job: Job[PurifyConfig], outcome: Outcome, purifier: str) -> str:
    parts = [f"{outcome.purified:,} purified"]
    parts += [f"{outcome.skipped:,} skipped (already done)"] if outcome.skipped else []
    parts += [f"{len(outcome.failed):,} failed"] if outcome.failed else []
    return f"{', '.join(parts)}: {job.options.output}  (purifier {purifier[:12]})"
