"""Terminates a stage of a pipeline when the pipeline ends, even by kill -9.

The stage sets this up itself. With a function between fork and exec, the parent could lose a SIGTERM that arrives at
that moment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

ENDS_WITH = "MAEP_ENDS_WITH"
"""Environment variable with the id of the parent process."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """If `ENDS_WITH` is set, this process gets SIGTERM when its parent ends (Linux only). Its own children do not."""
    parent = os.environ.pop(ENDS_WITH, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it has ended already
        raise SystemExit(128 + signal.SIGTERM)
