"""Uploaded checkpoints as tags of a run: one tag each, so that recording one is atomic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

_NEWEST = "maep.checkpoint"  # .uri, .sha256, .samples_seen
_EACH = "maep.checkpoints."


@dataclass(frozen=True)
class Checkpoint:
    """An uploaded artifact of a run: its URI, its sha256, and the training images seen."""

    uri: str
    manifest_sha256: str
    samples_seen: int


def to_tags(checkpoint: Checkpoint) -> dict[str, str]:
    """The tags that record `checkpoint` as the newest of its run."""
    name = f"{_EACH}{checkpoint.samples_seen:015d}.{checkpoint.manifest_sha256[:8]}"
    return {
        name: json.dumps(asdict(checkpoint)),
        f"{_NEWEST}.uri": checkpoint.uri,
        f"{_NEWEST}.sha256": checkpoint.manifest_sha256,
        f"{_NEWEST}.samples_seen": str(checkpoint.samples_seen),
    }


def checkpoints(tags: Mapping[str, str]) -> list[Checkpoint]:
    """The checkpoints that a run's `tags` record, oldest first, the last recorded one at the end."""
    found = [Checkpoint(**json.loads(value)) for name, value in tags.items() if name.startswith(_EACH)]
    newest = tags.get(f"{_NEWEST}.sha256")
    return sorted(found, key=lambda c: (c.samples_seen, c.manifest_sha256 == newest, c.uri))


def newest_checkpoint(tags: Mapping[str, str]) -> Checkpoint | None:
    """The checkpoint that a run recorded last."""
    uri = tags.get(f"{_NEWEST}.uri")
    if uri is None:
        return None
    return Checkpoint(uri, tags[f"{_NEWEST}.sha256"], int(tags[f"{_NEWEST}.samples_seen"]))
