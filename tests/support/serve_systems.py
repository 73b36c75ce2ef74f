"""Servers and load generators for benchmarks of the endpoint, as separate processes on given cores."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stack import free_ports

PROGRAMS = Path(__file__).parents[1] / "benchmarks"
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One model and wire form, and where everything runs."""

    model: str
    kind: str
    side: int
    bodies: Path
    cores: str = "0"
    core_of_load: int | None = 1
    workers: int = 1
    clients: tuple[int, ...] = (1, 8, 32)
    seconds: float = 6


def command(program: str, wait_ms: float, case: Case, *more: str) -> list[str]:
    """The line that starts `program` of serve_rivals.py."""
    words = ["--model", case.model, "--kind", case.kind, "--cores", case.cores, "--workers", str(case.workers)]
    return [sys.executable, str(PROGRAMS / "serve_rivals.py"), program, *words, "--wait_ms", str(wait_ms), *more]


@contextlib.contextmanager
def running(program: str, wait_ms: float, case: Case, libraries: str = "") -> Iterator[tuple[int, int]]:
    """The port of a server that is ready, and its process id."""
    port = free_ports(1)[0]
    log = case.bodies.parent / f"{program}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(program, wait_ms, case, "--port", str(port), "--libraries", libraries),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                break
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):  # its own session: whatever it has left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def apply_load(case: Case, port: int, *words: str, only_200: bool = True) -> Row:
    """What serve_load.py measured. `words` say the load."""
    core = [] if case.core_of_load is None else ["--core", str(case.core_of_load)]
    line = [sys.executable, str(PROGRAMS / "serve_load.py"), str(port), str(case.bodies), "--kind", case.kind]
    line += ["--side", str(case.side), "--seconds", str(case.seconds), "--warm", "1", *core, *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=case.seconds + 120)
    assert done.returncode == 0, done.stderr[-2000:]
    row: Row = json.loads(done.stdout)
    assert not only_200 or set(row["statuses"]) == {"200"}, row
    return row


def pictures(folder: Path, side: int, kind: str, count: int = 64) -> Path:
    """Smooth pictures as request bodies."""
    folder.mkdir(parents=True)
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        if kind == "png":
            picture.save(folder / f"{number:02d}.png")
        else:
            (folder / f"{number:02d}.raw").write_bytes(np.asarray(picture).tobytes())
    return folder
