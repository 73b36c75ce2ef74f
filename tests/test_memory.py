"""The allocator keeps freed blocks. Run in a separate process, because the setting applies to the whole process."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from maep import memory
if sys.argv[1] == "kept":
    memory.keep_freed()
def step():
    blocks = [torch.ones(2**23), torch.ones(2**24)]  # 96 MiB: 24,576 pages
    return sum(map(len, blocks))
for _ in range(8):  # until the holes between blocks have their sizes
    step()
found = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(found))  # the kernel may reclaim pages between two steps
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc of glibc")
def test_steps_reuse_the_pages_of_the_previous_step() -> None:
    assert faults("kept") < 100 < 10_000 < faults("given back")


SIZES = """
import re, torch
from pathlib import Path
from maep import memory
memory.keep_freed()
def mebibytes():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = mebibytes()
blocks = [torch.ones(2**18) for _ in range(200)]  # 200 MiB
last = blocks[-1]  # what lies behind it cannot just be cut off
del blocks
kept = mebibytes()
memory.give_back()
print(kept - before, mebibytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc of glibc")
def test_give_back_returns_memory_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", SIZES], capture_output=True, text=True, check=True, timeout=120)
    kept, left = map(int, done.stdout.split())
    assert left < 50 < 150 < kept
