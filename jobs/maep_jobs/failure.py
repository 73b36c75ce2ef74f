"""Work that was asked for rightly, ran, and failed."""

from __future__ import annotations


class JobFailed(RuntimeError):
    """One line: which part failed and where to look. The command line prints it and ends with exit status 1."""
