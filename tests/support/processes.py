"""The processes that a test started, and whether they still run (Linux: from /proc)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """Process ids of all descendants of `pid` that run."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(word) for word in task.read_text().split()]
        except OSError:  # the thread ended meanwhile
            continue
        for child in direct:
            found += [child, *children(child)]
    return [child for child in found if is_running(child)]


def marked(variable: str, value: str) -> list[str]:
    """Command lines of the running processes that have `variable` as `value` in their environment."""
    wanted = f"{variable}={value}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # ended meanwhile, or not ours
            continue
    return [line for line in found if line.strip()]


def memory_mib(pid: int) -> float:
    """Memory of `pid` and all its descendants; shared memory counts once (proportional set size)."""
    total = 0
    for each in [pid, *children(pid)]:
        with suppress(OSError):  # ended meanwhile
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**10


def is_running(pid: int) -> bool:
    """Whether `pid` is a process that has not ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
