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
from maep.train.checkpoints import Checkpoints, check_same

MODEL, CHECKPOINTS = "model", "checkpoints"


@dataclass(frozen=True)
class World:
    """This process among those that train together; a process group must be up where `size` is above 1."""

    rank: int = 0
    size: int = 1


def starting_point(
    config: Mapping[str, Any], output: Path, resume: Artifact | None = None, world: World | None = None
) -> Artifact | None:
    """What a run of `config` goes on from: the finished result, else the newest sound checkpoint, else `resume`.

    Rank 0 chooses and the others open the same: none ever starts at another step. None: there is nothing; all must
    call. Raises ArtifactError where that is of another configuration or no checkpoint, or the result is damaged, and
    UnavailableError where a worker does not find what rank 0 has chosen: on all workers alike.
    """
    world = world or World()
    found: Artifact | None = None
    mistake: UserError | None = None
    if world.rank == 0:
        try:
            found = _chosen(config, output, resume)
        except UserError as error:
            mistake = error
    if world.size > 1:
        said: list[Any] = [mistake or (found and (str(found.folder), found.sha256))]
        torch.distributed.broadcast_object_list(said, src=0)
        if isinstance(said[0], UserError):
            mistake = said[0]
        elif world.rank and said[0] is not None:
            folder, sha256 = said[0]
            try:
                found = _same(folder, sha256, world.rank)
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


def _chosen(config: Mapping[str, Any], output: Path, resume: Artifact | None) -> Artifact | None:
    if (output / MODEL / artifact.MANIFEST).exists():
        start: Artifact | None = artifact.read(output / MODEL)
    else:
        start = Checkpoints(output / CHECKPOINTS, 1).newest() or resume
        if start is not None:
            start.require_state()
    if start is not None:
        check_same(start, config)
    return start


def _same(folder: str, sha256: str, rank: int) -> Artifact:
    """The artifact that rank 0 goes on from, as this worker sees it."""
    try:
        found = artifact.read(folder)
    except ArtifactError as error:
        raise UnavailableError(
            f"worker {rank} does not find what worker 0 goes on from ({error}): --output must lie where all machines"
            " see it"
        ) from None
    if found.sha256 != sha256:
        raise UnavailableError(
            f"worker {rank} finds another checkpoint in {folder} than worker 0: --output must be the same folder on all"
            " machines"
        )
    return found
