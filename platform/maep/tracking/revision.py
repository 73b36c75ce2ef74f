"""The git revision of the running code."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path


@functools.cache
def revision() -> str | None:
    """`commit_of` maep itself, cached."""
    return commit_of(Path(__file__).parents[1])


def commit_of(folder: Path) -> str | None:
    """The git commit of the checkout that contains the package in `folder`, with `-dirty` after local changes.

    None for an installed wheel, even inside another checkout, and without git.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *words: str) -> str | None:
    """Output of git; None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
