"""A stage of a pipeline ends with the pipeline, even where that is ended by kill -9.

The stage sees to it itself. Were it done between fork and exec, Python would run its own work after a fork in the
parent too, and a SIGTERM that comes in that moment would be swallowed there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

ENDS_WITH = "MAEP_ENDS_WITH"
"""Environment variable with the id of the process whose end is this one's."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Where `ENDS_WITH` names a process, its end sends this one SIGTERM (Linux only); children are not told."""
    parent = os.environ.pop(ENDS_WITH, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before this
        raise SystemExit(128 + signal.SIGTERM)
