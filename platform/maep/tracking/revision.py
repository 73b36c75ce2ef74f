"""Which code a run was made by."""

from __future__ import annotations

import functools
import subprocess
from contextlib import suppress
from pathlib import Path

_SECONDS = 10.0


@functools.cache
def revision() -> str | None:
    """The commit that maep runs from, as `commit_of` says it; asked once a process."""
    return commit_of(Path(__file__).parent)


def commit_of(folder: Path) -> str | None:
    """The commit of the checkout that files of `folder` belong to, with `-dirty` where any has changed since.

    None where they belong to none, or git is not there to ask.
    """

    def git(*words: str) -> str:
        line = ["git", "-C", str(folder), *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", ".")  # an environment that lies in another project's checkout is not of it
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return None
