"""Where a run goes on from: one choice for all its workers, however differently their disks look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maep import artifact
from maep.artifact import Artifact
from maep.errors import ArtifactError, UnavailableError, UserError
from maep.train.checkpoint.mirror import Mirror
from maep.train.checkpoint.store import CHECKPOINTS, MODEL, Checkpoints, check_same


@dataclass(frozen=True)
class World:
    """This process among those that train together; a process group must be up where `size` is above 1."""

    rank: int = 0
    size: int = 1


def starting_point(
    config: Mapping[str, Any],
    output: Path,
    resume: Artifact | None = None,
    world: World | None = None,
    mirror: Mirror | None = None,
) -> Artifact | None:
    """What a run of `config` goes on from: the finished result, else the newest sound checkpoint, else `resume`.

    Rank 0 chooses and the others open the same: none ever starts at another step. None: there is nothing; all must
    call. With a `mirror`, `output` is first brought up to what lies there, and the run is this group's from then on.
    Raises ArtifactError where that is of another configuration or no checkpoint, or the result is damaged, and
    UnavailableError where a worker does not find what rank 0 has chosen: on all workers alike.
    """
    world = world or World()
    found: Artifact | None = None
    mistake: UserError | None = None
    if world.rank == 0:
        try:
            found = _chosen(config, output, resume, mirror)
        except UserError as error:
            mistake = error
    if world.size > 1:
        said: list[Any] = [mistake or (found and (_below(output, found.folder), found.sha256))]
        torch.distributed.broadcast_object_list(said, src=0)
        if isinstance(said[0], UserError):
            mistake = said[0]
        elif world.rank and said[0] is not None:
            name, sha256 = said[0]
            try:
                found = _same(output, name, sha256, world.rank, mirror)
            except UserError as error:
                mistake = error
        mistake = anyones(mistake, world)
    if mistake is not None:
        raise mistake
    return found


def anyones(mistake: UserError | None, world: World) -> UserError | None:
    """The first worker's mistake, if any made one: then all stop, and none waits for another; all must call."""
    if world.size == 1:
        return mistake
    mistakes: list[UserError | None] = [None] * world.size
    torch.distributed.all_gather_object(mistakes, mistake)
    return next((each for each in mistakes if each is not None), None)


def _chosen(config: Mapping[str, Any], output: Path, resume: Artifact | None, mirror: Mirror | None) -> Artifact | None:
    if mirror is not None:
        mirror.pull()
    if (output / MODEL / artifact.MANIFEST).exists():
        start: Artifact | None = artifact.read(output / MODEL)
    else:
        start = Checkpoints(output / CHECKPOINTS, 1).newest() or resume
        if start is not None:
            start.require_state()
    if start is not None:
        check_same(start, config)
    if mirror is not None:
        mirror.claim()
    return start


def _below(output: Path, folder: Path) -> str:
    """`folder` as the others find it, whose `output` may have another name."""
    return str(folder.relative_to(output) if folder.is_relative_to(output) else folder)


def _same(output: Path, name: str, sha256: str, rank: int, mirror: Mirror | None) -> Artifact:
    """The artifact that rank 0 goes on from, as this worker sees it."""
    reason = "it has another one of that name"
    try:
        found = artifact.read(output / name)
        if found.sha256 == sha256:
            return found
    except ArtifactError as error:
        reason = str(error)
    if mirror is not None:
        return mirror.bring(name, sha256)
    raise UnavailableError(
        f"worker {rank} does not find what worker 0 goes on from ({reason}): --output must be one folder that all"
        " machines see, or s3://"
    )
