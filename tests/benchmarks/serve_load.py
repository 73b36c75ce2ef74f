"""Load on one route, from a process of its own: so many clients that each wait for their answer, or open-loop arrivals.

    python serve_load.py PORT BODIES --kind png|raw --side 32 (--clients 8 | --rate 300) --seconds 8 [--core 1]

Open loop: arrivals are Poisson at `rate` and latency counts from when a request was due, not from when it could be sent
(no coordinated omission). BODIES is a folder of request bodies. Prints one JSON line.
HTTP/1.1 by hand over keep-alive connections: an HTTP library would need a good part of the core it is measured from.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CLOSE = re.compile(rb"(?i)\r\nconnection: *close")
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Load:
    """What was sent and how it was answered: latencies in seconds of 200s, and every status (0: connection lost)."""

    def __init__(self, port: int, requests: Iterator[bytes]) -> None:
        self.port = port
        self.requests = requests
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.counting_from = float("inf")
        self.idle: list[Connection] = []

    async def one(self, due: float) -> None:
        """One request that was due at `due`, over an idle connection or a new one."""
        status = 0
        try:
            reader, writer = self.kept() or await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(next(self.requests))
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            length = _LENGTH.search(head)
            if length is not None:
                await reader.readexactly(int(length[1]))
            else:  # in chunks, as Ray Serve writes its own refusals
                await reader.readuntil(b"0\r\n\r\n")
            if _CLOSE.search(head):
                writer.close()
            else:
                self.idle.append((reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            status = 0
        if due >= self.counting_from:
            self.statuses[status] += 1
            if status == 200:
                self.latencies.append(time.monotonic() - due)

    def kept(self) -> Connection | None:
        """An idle connection that the server has not closed since."""
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def closed(self, clients: int, warm_s: float, seconds: float) -> float:
        """`clients` at once for `seconds`; the answer is how long a client was counted, in the mean.

        From its first counted request to its last answer, so a rate of few slow answers is not one of whole answers in
        a window that ends between two.
        """
        begins = time.monotonic() + warm_s
        self.counting_from = begins

        async def client() -> float:
            counted = 0.0
            while (now := time.monotonic()) < begins + seconds:
                await self.one(now)
                if now >= begins:
                    counted += time.monotonic() - now
            return counted

        return statistics.fmean(await asyncio.gather(*(client() for _ in range(clients))))

    async def open(self, rate: float, warm_s: float, seconds: float) -> float:
        """Arrivals at `rate` a second for `seconds`; the answer is how long was counted."""
        chance = random.Random(0)
        due = time.monotonic()
        begins = due + warm_s
        self.counting_from = begins
        async with asyncio.TaskGroup() as group:
            while due < begins + seconds:
                await asyncio.sleep(max(0, due - time.monotonic()))
                group.create_task(self.one(due))
                due += chance.expovariate(rate)
        return time.monotonic() - begins


def requests(folder: Path, kind: str, side: int) -> Iterator[bytes]:
    """The bodies of `folder` in turn, each as a whole request."""
    media = "image/png" if kind == "png" else "application/octet-stream"
    raw = "" if kind == "png" else f"x-shape: {side},{side},3\r\nx-dtype: uint8\r\naccept: {media}\r\n"
    made = []
    for file in sorted(folder.iterdir()):
        body = file.read_bytes()
        head = f"POST /v1/purify HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {media}\r\n{raw}"
        made.append(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return itertools.cycle(made)


def percentile(values: list[float], share: float) -> float:
    """Milliseconds; not a number where there are no values."""
    return 1000 * sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


async def run(options: argparse.Namespace) -> dict[str, object]:
    """The load that was asked for, and what came of it."""
    load = Load(options.port, requests(options.bodies, options.kind, options.side))
    if options.rate:
        took = await load.open(options.rate, options.warm, options.seconds)
    else:
        took = await load.closed(options.clients, options.warm, options.seconds)
    return {
        "rate": load.statuses[200] / took,
        "p50_ms": percentile(load.latencies, 0.50),
        "p99_ms": percentile(load.latencies, 0.99),
        "statuses": dict(load.statuses),
    }


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--kind", choices=["png", "raw"], default="png")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--warm", type=float, default=2)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    print(json.dumps(asyncio.run(run(options))), flush=True)


if __name__ == "__main__":
    main()
