"""Kill a training command, re-run it, and check what its history records."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from processes import children, is_running

from maep import artifact
from maep.artifact import Artifact
from maep.train.checkpoint.history import read

DEADLINE_S = 280


def newest(output: Path) -> int:
    """Images seen at the newest checkpoint; 0 where there is none."""
    try:
        return int(json.loads((output / "checkpoints" / "index.json").read_text())[-1])
    except FileNotFoundError:
        return 0


def kill_and_go_on(
    line: list[str], output: Path, samples: int, seed: int, number: signal.Signals = signal.SIGKILL
) -> Artifact:
    """Ends the command once it has a checkpoint at or after a number of images drawn from `seed`, and reruns it.

    Asserts that it ended by that, unfinished, that the rerun ends with a result, and what the history says of both.
    """
    at = random.Random(seed).randrange(1, samples // 2)
    print(f"seed {seed}: {number.name} at the first checkpoint after {at} of {samples} images")
    command = [sys.executable, "-m", "maep_jobs.cli", *line, "--output", str(output), "--tracking.enabled", "false"]
    deadline = time.monotonic() + DEADLINE_S
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            while newest(output) < at:
                assert process.poll() is None, process.communicate()[1].decode()
                assert time.monotonic() < deadline
                time.sleep(0.002)  # between two looks at the index
            started = children(process.pid)
            process.send_signal(number)
            said = process.communicate(timeout=DEADLINE_S)[1].decode()
        finally:
            process.kill()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number, said
        assert re.search(r"stopped at [\d,]+ images", said, re.M), said
    while any(map(is_running, started)):  # Ray's processes, which outlive the driver for a moment
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not artifact.is_valid(output / "model")
    assert at <= newest(output) < samples
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    result = artifact.read(output / "model")
    assert json.loads(done.stdout)["sha256"] == result.sha256
    left = {path.name for path in output.iterdir()}
    assert left - {"ray"} == {"config.yaml", "history.jsonl", "model"}
    check_history(line, output, process.pid, number)
    return result


def check_history(line: list[str], output: Path, pid: int, number: signal.Signals) -> None:
    """The history names the process that ended and the number of repeated steps: none with a notice.

    Without, those since the newest whole checkpoint: at most an interval, and what was done while one was written.
    """
    size, every = (int(line[line.index(f"--loop.{key}") + 1]) for key in ("batch_size", "checkpoint_every"))
    lines = read(output)
    resumed = next(each for each in lines if each["event"] == "resumed")
    print(f"process {pid} ended by {number.name}: goes on at step {resumed['step']}, {resumed['redone']} steps again")
    if number == signal.SIGKILL:
        assert [each["event"] for each in lines] == ["started", "resumed", "finished"]
        assert resumed["lost_pid"] == lines[0]["pid"]
        assert lines[0]["pid"] == pid or "--workers.num_workers" in line  # there it is the worker's
        assert resumed["redone"] < 2 * every // size
    else:
        assert [each["event"] for each in lines] == ["started", "stopped", "resumed", "finished"]
        assert "lost_pid" not in resumed
        assert lines[1]["step"] == resumed["step"]
        assert resumed["redone"] == 0
