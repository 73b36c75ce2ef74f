"""Processes that train together over gloo on this machine, one run after the other, and what became of each run.

As a program, `python workers.py RANK SPEC`: one of them.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEADLINE_S = 280


def together(runs: dict[str, dict[str, Any]], folder: Path, size: int = 2) -> dict[str, list[dict[str, Any]]]:
    """Pretrains in `folder`/NAME for each of `runs` on `size` workers; what each worker tells of it, by rank.

    A run is `values`, its settings, and (rank, step) of a fault: `nan_at`, a loss that is not a number, or `told_at`, a
    notice to end. Workers `apart` have a folder NAME-RANK each.
    """
    spec = json.dumps({"runs": runs, "folder": str(folder), "size": size})
    command = [sys.executable, "-W", "ignore", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), spec], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(size)
    ]
    try:
        told = [process.communicate(timeout=DEADLINE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, err) in zip(processes, told, strict=True):
        assert process.returncode == 0, err[-3000:]
    by_rank = [json.loads(out.splitlines()[-1]) for out, _ in told]
    return {name: [each[name] for each in by_rank] for name in runs}


def _pretrain(spec: dict[str, Any], output: Path, rank: int, size: int) -> dict[str, Any]:
    from train_toys import Heard

    from maep import config
    from maep.errors import Stopped, UserError
    from maep.train.batch import Batch
    from maep.train.build_tasks import pretraining
    from maep.train.checkpoint.resume import World
    from maep.train.config import PretrainConfig
    from maep.train.loop.run import run
    from maep.train.objectives import Losses

    task = pretraining(config.build(PretrainConfig, spec["values"]))
    forward, calls = task.objective.forward, []

    def broken(batch: Batch) -> Losses:
        calls.append(batch)
        losses: Losses = forward(batch)
        return losses._replace(loss=losses.loss * math.nan) if [rank, len(calls) - 1] == spec.get("nan_at") else losses

    task.objective.forward = broken  # type: ignore[method-assign]

    def told() -> bool:
        return [rank, len(calls)] == spec.get("told_at")

    heard = Heard()
    found: dict[str, Any] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        found["sha256"] = run(task, output, [heard], World(rank, size), notice=told).sha256
    except (FloatingPointError, UserError, Stopped) as error:
        found["error"] = str(error)
    found["cpu_share"] = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return found | {"steps": [{"seen": each.samples_seen, **each.metrics} for each in heard.steps]}


def _main(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    folder, size = Path(spec["folder"]), spec["size"]
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=size)
    told = {
        name: _pretrain(each, folder / (f"{name}-{rank}" if each.get("apart") else name), rank, size)
        for name, each in spec["runs"].items()
    }
    torch.distributed.destroy_process_group()
    return told


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    print(json.dumps(_main(int(sys.argv[1]), json.loads(sys.argv[2]))))
