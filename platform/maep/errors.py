"""User errors: one clear line each, and exit status 2 at the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

NAMES_SHOWN = 3
OPTIONS_LISTED = 50


class UserError(ValueError):
    """A mistake of the user (a key, a file, an address). The message says what is wrong, where, and what to write."""


class ConfigError(UserError):
    """A configuration key or value that cannot be used."""


class DataError(UserError):
    """A data set that is missing, empty or damaged."""


class ArtifactError(UserError):
    """An artifact folder that is missing, truncated, tampered with, or of a newer schema."""


class UnavailableError(UserError):
    """A service (MLflow, Ray, S3) that does not answer, or a port that is in use."""


class WriteError(UserError, OSError):
    """A file or folder that cannot be written: a full disk, no permission, something in the way."""


class JobFailed(RuntimeError):
    """Part of a command's work failed after it was started. The command line prints one line and exits with 1."""


class Stopped(BaseException):
    """A run wrote a checkpoint and stopped after a termination notice. This is not an error."""

    def __init__(self, samples_seen: int) -> None:
        super().__init__(samples_seen)
        self.samples_seen = samples_seen

    def __str__(self) -> str:
        return f"stopped at {self.samples_seen:,} images: re-run the same command to resume"


def few(names: Sequence[str], separator: str = ", ") -> str:
    """The first of `names`, for an error line: 'a, b, c and 4 more'."""
    rest = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return separator.join(names[:NAMES_SHOWN]) + rest


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of an error line: the option closest to `name`, else all options, or a few of a very long list."""
    names = sorted(options)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return "there is nothing to choose from"
    return f"choose one of {', '.join(names) if len(names) <= OPTIONS_LISTED else few(names)}"
