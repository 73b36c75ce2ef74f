"""What can be wrong with what a user gave us: one clear line each, and exit status 2 at the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

NAMES_SHOWN = 3


class UserError(ValueError):
    """A mistake in what the user gave (a key, a file, an address). The message says what, where and the cure."""


class ConfigError(UserError):
    """A configuration key or value that cannot be used."""


class DataError(UserError):
    """A data set that is missing, empty or damaged."""


class ArtifactError(UserError):
    """An artifact folder that is missing, truncated, tampered with, or of a newer schema."""


class UnavailableError(UserError):
    """A service that was named does not answer (MLflow, Ray, S3), or a port that is taken."""


class WriteError(UserError, OSError):
    """A file or folder that cannot be written: a full disk, no permission, something in the way."""


class Stopped(BaseException):
    """A run that was told to end has ended, and the same call goes on from there: no mistake and no fault."""

    def __init__(self, samples_seen: int) -> None:
        super().__init__(samples_seen)
        self.samples_seen = samples_seen

    def __str__(self) -> str:
        return f"stopped at {self.samples_seen:,} images, as was asked: the same line goes on from there"


def few(names: Sequence[str], separator: str = ", ") -> str:
    """The middle of an error line: 'a, b, c and 4 more', or as many as there are."""
    rest = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return separator.join(names[:NAMES_SHOWN]) + rest


def nearest(name: str, options: Iterable[str]) -> str:
    """The tail of an error line: the closest of `options` to `name`, else all of them."""
    names = sorted(options)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose one of {', '.join(names)}" if names else "there is nothing to choose from"
