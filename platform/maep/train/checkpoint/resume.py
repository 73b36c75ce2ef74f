"""What a run resumes from: one choice for all its workers, whatever each finds on its own disk."""

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
    """The rank of this process among `size` workers; above 1 a process group must be initialised."""

    rank: int = 0
    size: int = 1


def starting_point(
    config: Mapping[str, Any],
    output: Path,
    resume: Artifact | None = None,
    world: World | None = None,
    mirror: Mirror | None = None,
) -> Artifact | None:
    """What a run of `config` starts from: its finished result, else its newest valid checkpoint, else `resume`.

    None: from scratch. Rank 0 chooses and the others open the same artifact; all workers must call it. With a `mirror`,
    `output` is brought up to date first, and this group becomes the owner of the run. Raises on every worker
    ArtifactError where the chosen artifact has another configuration, is damaged or is not a checkpoint, and
    UnavailableError where a worker cannot find it.
    """
    world = world or World()
    found: Artifact | None = None
    mistake: UserError | None = None
    if world.rank == 0:
        try:
            found = _choose(config, output, resume, mirror)
        except UserError as error:
            mistake = error
    if world.size > 1:
        message: list[Any] = [mistake or (found and (_name_below(output, found.folder), found.sha256))]
        torch.distributed.broadcast_object_list(message, src=0)
        if isinstance(message[0], UserError):
            mistake = message[0]
        elif world.rank and message[0] is not None:
            name, sha256 = message[0]
            try:
                found = _open_same(output, name, sha256, world.rank, mirror)
            except UserError as error:
                mistake = error
        mistake = first_mistake(mistake, world)
    if mistake is not None:
        raise mistake
    return found


def first_mistake(mistake: UserError | None, world: World) -> UserError | None:
    """The first worker's mistake, on all workers, so that none waits for one that stopped; all workers must call it."""
    if world.size == 1:
        return mistake
    mistakes: list[UserError | None] = [None] * world.size
    torch.distributed.all_gather_object(mistakes, mistake)
    return next((each for each in mistakes if each is not None), None)


def _choose(config: Mapping[str, Any], output: Path, resume: Artifact | None, mirror: Mirror | None) -> Artifact | None:
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


def _name_below(output: Path, folder: Path) -> str:
    """`folder` relative to `output`, which may have another path on other workers."""
    return str(folder.relative_to(output) if folder.is_relative_to(output) else folder)


def _open_same(output: Path, name: str, sha256: str, rank: int, mirror: Mirror | None) -> Artifact:
    """The artifact that rank 0 chose, as this worker finds it."""
    reason = "another artifact has that name"
    try:
        found = artifact.read(output / name)
        if found.sha256 == sha256:
            return found
    except ArtifactError as error:
        reason = str(error)
    if mirror is not None:
        return mirror.fetch(name, sha256)
    raise UnavailableError(
        f"worker {rank} cannot open the checkpoint that worker 0 resumes from ({reason}): --output must be a folder"
        " that all machines share, or s3://"
    )
