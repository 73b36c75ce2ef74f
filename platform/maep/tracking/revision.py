"""Which revision of the code makes a run."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path


@functools.cache
def revision() -> str | None:
    """The commit that maep runs from, as `commit_of` says it; asked once a process."""
    return commit_of(Path(__file__).parents[1])


def commit_of(folder: Path) -> str | None:
    """The git commit of the checkout that the package in `folder` is of, and `-dirty` where files were changed since.

    None for an installed wheel, also for one that lies below somebody's checkout, and where there is no git.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
