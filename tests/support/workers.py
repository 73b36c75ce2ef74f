"""Two processes that train together over gloo on this machine, and what became of each.

As a program, `python workers.py RANK SPEC`: one of them.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DEADLINE_S = 280


def together(values: dict[str, Any], output: Path, size: int = 2, **more: Any) -> list[dict[str, Any]]:
    """Pretrains with the settings `values` on `size` workers; what each of them printed last, by rank.

    `nan_at`: (rank, step) of a loss that is not a number.
    """
    output.mkdir(parents=True, exist_ok=True)
    spec = json.dumps({"values": values, "output": str(output), "size": size, **more})
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
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


def _work(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    import torch
    from train_toys import Heard

    from maep import config
    from maep.train.config import PretrainConfig
    from maep.train.loop import World, run
    from maep.train.objectives import Batch, Losses
    from maep.train.phases import pretraining

    torch.set_num_threads(1)
    output = Path(spec["output"])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{output / 'meet'}", rank=rank, world_size=spec["size"]
    )
    task = pretraining(config.build(PretrainConfig, spec["values"]))
    if spec.get("nan_at", [None])[0] == rank:
        forward, calls = task.objective.forward, []

        def broken(batch: Batch) -> Losses:
            calls.append(batch)
            losses: Losses = forward(batch)
            return losses._replace(loss=losses.loss * math.nan) if len(calls) == spec["nan_at"][1] + 1 else losses

        task.objective.forward = broken  # type: ignore[method-assign]
    heard = Heard(spec.get("stop_after"))
    found: dict[str, Any] = {}
    try:
        found["sha256"] = run(task, output / "out", [heard], World(rank, spec["size"])).sha256
    except FloatingPointError as error:
        found["error"] = str(error)
    torch.distributed.destroy_process_group()
    return found | {"steps": [{"seen": each.samples_seen, **each.metrics} for each in heard.steps]}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    print(json.dumps(_work(int(sys.argv[1]), json.loads(sys.argv[2]))))
