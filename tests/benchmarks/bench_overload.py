"""The endpoint at twice its capacity for minutes: it refuses the excess, and its memory does not grow.

`BENCH_SOAK_MINUTES` says for how long (10).
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from processes import memory_mib
from serve_systems import Case, apply_load, pictures, running

MINUTES = float(os.environ.get("BENCH_SOAK_MINUTES", "10"))
ALLOWED = {"200", "429", "503"}


class _Watch:
    """MiB of a process and all that it has started, every five seconds, while the block runs."""

    def __init__(self, pid: int) -> None:
        self.samples: list[float] = []
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.wait(5):
            self.samples.append(memory_mib(self._pid))

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.mark.timeout(60 * MINUTES + 900)
def test_twice_the_capacity_is_refused_in_part_and_survived(tmp_path: Path) -> None:
    """Server on core 0, open-loop load on core 1; the rate is twice what 32 clients get."""
    case = Case("bundled:cifar10", "png", 32, pictures(tmp_path / "bodies", 32, "png"))
    with running("maep", 0, case) as (port, pid):
        alone = apply_load(case, port, "--clients", "1")
        capacity = apply_load(case, port, "--clients", "32")["rate"]
        with _Watch(pid) as memory:
            long = dataclasses.replace(case, seconds=60 * MINUTES)
            row = apply_load(long, port, "--rate", f"{2 * capacity:.0f}", only_200=False)
        ended = time.monotonic()
        while True:
            after = apply_load(dataclasses.replace(case, seconds=2), port, "--clients", "1")
            recovered_s = time.monotonic() - ended - 3  # of which the measurement itself is three
            if after["p50_ms"] <= 2 * alone["p50_ms"] or recovered_s > 60:
                break
    answered = sum(row["statuses"].values())
    early, late = max(memory.samples[: len(memory.samples) // 3]), max(memory.samples[-len(memory.samples) // 3 :])
    print(
        f"\n{MINUTES:g} minutes at {2 * capacity:.0f} requests/s, twice the capacity: {answered} answered,"
        f" {', '.join(f'{status}: {count}' for status, count in sorted(row['statuses'].items()))};"
        f" accepted {row['rate']:.0f}/s, p50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms;"
        f" memory {early:.0f} MiB in the first third, {late:.0f} in the last; recovered in {max(0, recovered_s):.0f} s"
    )
    assert set(row["statuses"]) <= ALLOWED
    assert row["rate"] >= 0.5 * capacity  # refusing takes its time on the same core
    assert row["p99_ms"] <= 2000
    assert late <= 1.05 * early
    assert recovered_s <= 10


def test_the_load_is_not_what_limits(tmp_path: Path) -> None:
    """The load program against a server that answers at once: it must offer more than any measurement asks for."""
    case = Case("", "raw", 32, pictures(tmp_path / "bodies", 32, "raw"), seconds=3)
    server = subprocess.Popen(["python3", "-c", _AT_ONCE, str(tmp_path / "port")])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "port").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        rate = apply_load(case, int((tmp_path / "port").read_text()), "--clients", "32")["rate"]
    finally:
        server.kill()
        server.wait()
    print(f"\nthe load program alone: {rate:.0f} requests/s")
    assert rate >= 3000


_AT_ONCE = """
import asyncio, os, sys
os.sched_setaffinity(0, {0})
class AtOnce(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
    def data_received(self, data):
        self.data += data
        while (end := self.data.find(b"\\r\\n\\r\\n")) >= 0:
            length = int(self.data[:end].lower().partition(b"content-length: ")[2].split()[0])
            if len(self.data) < end + 4 + length:
                return
            self.data = self.data[end + 4 + length:]
            self.transport.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
async def main():
    server = await asyncio.get_running_loop().create_server(AtOnce, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(str(port))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    await server.serve_forever()
asyncio.run(main())
"""
