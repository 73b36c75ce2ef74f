"""Names of programs in printed commands, which must work as printed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def program(name: str = "maep") -> str:
    """How to call a program of this environment: by name if the shell finds that file, else by path.

    If it is not installed beside this Python (a wheel unpacked into a folder), `maep` is `python -m maep_jobs.cli`.
    """
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if beside.exists():
        if found is not None and Path(found).samefile(beside):
            return name
        near = Path(os.path.relpath(beside))
        return shlex.quote(str(beside if near.parts[0] == ".." else near))
    if found is not None and name != "maep":
        return name
    return f"{shlex.quote(sys.executable)} -m {'maep_jobs.cli' if name == 'maep' else name}"
