"""What Ray Train costs beside the steps, at 1, 2, 4 and 8 workers, and straight lines through it: docs/scale.md.

  start     from the driver's call to the last worker's first line, and how much processor time a worker took for it
  exchange  a sum over the workers of as many numbers as a report of the loop has
  report    `ray.train.report` without a checkpoint, which the loop never calls
  snapshot  what a checkpoint holds the steps up for: a copy of weights and AdamW's moments, Ti at 32 px
  commit    until the checkpoint lies whole and verified on disk, in a thread beside the steps
  end       from the last worker's last line to the driver's next

Workers are processes of one machine with a fraction of its cores each, so all that is their own work, above all the
start, grows with their number as it would not where each has cores of its own. The last line takes that part out.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maep import cluster

WORKERS = (1, 2, 4, 8)
GPUS = (64, 512)
EXCHANGES, REPORTS, COMMITS = 50, 3, 3
NUMBERS = 6
"""Loss, its parts and the gradient's norm."""
SECONDS = ("start", "exchange", "report", "snapshot", "commit", "end")


def costs(values: dict[str, Any]) -> None:
    """In each worker; rank 0 writes what it and the slowest took to `values["told"]`."""
    import ray.train
    import torch

    begun, own = time.time(), time.process_time()
    torch.set_num_threads(1)
    rank = ray.train.get_context().get_world_rank()
    slowest = torch.tensor([begun, own], dtype=torch.float64)
    torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
    found = {"start": slowest[0].item() - values["called"], "own": slowest[1].item()}

    def together(action: Callable[[], object], count: int) -> float:
        """The median of what it takes once all are there, the first one not counted."""
        taken = []
        for _ in range(count + 1):
            torch.distributed.barrier()
            before = time.perf_counter()
            action()
            taken.append(time.perf_counter() - before)
        return statistics.median(taken[1:])

    totals = torch.zeros(NUMBERS)
    found["exchange"] = together(lambda: torch.distributed.all_reduce(totals), EXCHANGES)
    found["report"] = together(lambda: ray.train.report({"loss": 0.0}), REPORTS)
    if rank == 0:
        found |= _checkpoint(Path(values["folder"]))
    torch.distributed.barrier()
    if rank == 0:
        Path(values["told"]).write_text(json.dumps(found | {"ended": time.time()}))


def _checkpoint(folder: Path) -> dict[str, float]:
    """Seconds of a snapshot and of writing it, and its MB."""
    import torch

    from maep import config
    from maep.models.mae import MaskedAutoencoder
    from maep.train.checkpoint.store import Checkpoints, snapshot
    from maep.train.config import LoopConfig, PretrainConfig
    from maep.train.loop.optimizers import make_optimizer

    settings = config.build(PretrainConfig, {"model": {"preset": "Ti/4", "image_size": 32}})
    model = MaskedAutoencoder(settings.model)
    optimizer = make_optimizer(model, LoopConfig())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    checkpoints, taken = Checkpoints(folder, keep=2), []
    for number in range(COMMITS + 1):
        before = time.perf_counter()
        copied = snapshot(number, {}, model.state_dict(), {"optimizer": optimizer.state_dict()})
        between = time.perf_counter()
        saved = checkpoints.save(copied)
        taken.append((between - before, time.perf_counter() - between))
    size = sum(file.stat().st_size for file in saved.folder.rglob("*") if file.is_file())
    held, written = (statistics.median(each) for each in zip(*taken[1:], strict=True))
    return {"snapshot": held, "commit": written, "megabytes": size / 1e6}


def measured(num_workers: int, folder: Path) -> dict[str, float]:
    """The costs with that many workers."""
    from ray import cloudpickle
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a benchmark

    told = folder / f"{num_workers}.json"
    values = {"called": time.time(), "told": str(told), "folder": str(folder / f"{num_workers}")}
    scaling = ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 0.25})
    TorchTrainer(
        costs,
        train_loop_config=values,
        scaling_config=scaling,
        run_config=RunConfig(name=f"scale-{num_workers}", storage_path=str(folder)),
    ).fit()
    found: dict[str, float] = json.loads(told.read_text())
    return found | {"end": time.time() - found.pop("ended")}


@pytest.mark.timeout(1800)
def test_costs_by_the_number_of_workers(tmp_path: Path) -> None:
    """Prints them, and a + b n through them with what that makes of 64 and 512: an extrapolation, no measurement."""
    with cluster.session(None, max(WORKERS)):
        measured(1, tmp_path / "warm-up")  # the first workers of a cluster find nothing in the disk's cache
        rows = {number: measured(number, tmp_path) for number in WORKERS}
    print(f"\n{'workers':>8}" + "".join(f"{name + ' s':>12}" for name in SECONDS) + f"{'own s':>12}")
    for number, row in rows.items():
        print(f"{number:8}" + "".join(f"{row[name]:12.4f}" for name in (*SECONDS, "own")))
    fits = {name: np.polyfit(WORKERS, [row[name] for row in rows.values()], 1) for name in SECONDS}
    for name, (slope, start) in fits.items():
        beyond = ", ".join(f"{start + slope * gpus:.3g} s at {gpus}" for gpus in GPUS)
        print(f"  {name}: {start:.4f} s + {slope:.5f} s a worker; extrapolated {beyond}")
    own, cores = statistics.median(row["own"] for row in rows.values()), os.cpu_count() or 1
    rest = max(0.0, fits["start"][0] - own / cores)
    beyond = ", ".join(f"{fits['start'][1] + own + rest * gpus:.3g} s at {gpus}" for gpus in GPUS)
    print(
        f"  start where each worker has a core: {rest:.3f} s a worker beside its own {own:.1f}; extrapolated {beyond}"
    )
    print(f"  a checkpoint of {rows[1]['megabytes']:.0f} MB: {rows[1]['megabytes'] / rows[1]['commit']:.0f} MB/s")
    assert all(row[name] >= 0 for row in rows.values() for name in SECONDS)
    assert max(row["exchange"] for row in rows.values()) < 0.2, "a report of the loop must be cheap"


@pytest.mark.timeout(900)
def test_steps_that_ray_data_hands_over(tmp_path: Path) -> None:
    """Steps a second of the loader `ray` where there is next to nothing to decode: what one task a step allows."""
    import torch

    from maep.data.config import LoaderConfig
    from maep.data.reading.decoding import encode_png
    from maep.data.sets import imagenet
    from maep.data.stream.plan import Sampling
    from maep.data.stream.streaming import StreamedImages
    from maep.train.ray.loader import RayLoader

    (tmp_path / "imagenet" / "train" / "a").mkdir(parents=True)
    for number in range(64):
        file = tmp_path / "imagenet" / "train" / "a" / f"{number:03}.png"
        file.write_bytes(encode_png(np.full((16, 16, 3), number, dtype=np.uint8)))
    images, steps = StreamedImages(imagenet.train_shards(str(tmp_path)), 16), 300
    with cluster.session(None, 4):
        loader = RayLoader(images, Sampling(1), torch.device("cpu"), LoaderConfig("ray", prefetch=8))
        with closing(loader.parts(0, steps)) as parts:
            for _ in range(steps // 3):  # workers start meanwhile
                next(parts)
            began = time.perf_counter()
            taken = sum(1 for _ in parts)
    print(f"\nray hands over {taken / (time.perf_counter() - began):.0f} steps a second of one image")
    assert taken == steps - steps // 3
