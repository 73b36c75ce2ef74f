"""Failures of work that was started."""

from __future__ import annotations


class JobFailed(RuntimeError):
    """A part of the work failed; the message is one line. The command line prints it and exits with status 1."""
