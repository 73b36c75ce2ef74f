"""maep's endpoint beside LitServe, plain FastAPI with a batcher, and no server at all: the same model, the same tuning.

The server has core 0, the load core 1, in processes of their own. Every system is started anew in each of the repeats,
in turn, so that what else the machine does meets all alike; medians, ranges and ratios are printed.
LitServe is installed by uv into a folder of its own below the user's cache, never into maep's environment.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from serve_systems import Case, Row, apply_load, command, pictures, running

from maep import artifact, config
from maep.models.build import build_model

HERE = Path(__file__).parent
LITSERVE = "litserve==0.2.19"
REPEATS = 3
SYSTEMS = {  # the program, and how long a batch that is not full waits, in ms
    "in-process": ("in-process", 0),
    "fastapi": ("fastapi", 0),
    "litserve": ("litserve", 0),  # which polls its queue without a pause where it waits for nothing
    "litserve, 2 ms": ("litserve", 2),  # so that it is judged by the better of both
    "maep": ("maep", 0),
}
CLIENTS = (1, 8, 32)
OPEN_SHARES = (0.2, 0.4)  # of the bound without a server, so that every system can keep up


@pytest.fixture(scope="module")
def libraries() -> str:
    """A folder with LitServe, for the end of its program's path."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(HERE.parents[1] / ".uv" / "bin"))
    if uv is None:
        pytest.skip("needs uv, to install LitServe apart from maep")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maep-bench" / LITSERVE
    if not (home / "complete").is_file():
        line = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(home), LITSERVE]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"LitServe could not be installed: {done.stderr.strip()[-200:]}")
        (home / "complete").touch()
    return str(home)


def _bound(case: Case, batch_size: int) -> float:
    words = ["--max_batch_size", str(batch_size), "--seconds", str(case.seconds)]
    done = subprocess.run(command("in-process", 0, case, *words), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(json.loads(done.stdout.splitlines()[-1])["rate"])


def measure(case: Case, libraries: str, open_loop: bool = True) -> dict[str, dict[str, list[Row]]]:
    """Each system under each load, one row a repeat: `closed-8` is 8 clients, `open-0.4` 0.4 of the bound."""
    found: dict[str, dict[str, list[Row]]] = {name: {} for name in SYSTEMS}
    for _ in range(REPEATS):
        for name in SYSTEMS:
            if name == "in-process":
                for clients in case.clients:
                    rate = _bound(case, clients)
                    row = {"rate": rate, "p50_ms": 1000 * clients / rate, "p99_ms": math.nan}
                    found[name].setdefault(f"closed-{clients}", []).append(row)
                continue
            with running(*SYSTEMS[name], case, libraries) as (port, _):
                for clients in case.clients:
                    row = apply_load(case, port, "--clients", str(clients))
                    found[name].setdefault(f"closed-{clients}", []).append(row)
                for share in OPEN_SHARES if open_loop else ():
                    bound = found["in-process"][f"closed-{case.clients[-1]}"][0]["rate"]
                    row = apply_load(case, port, "--rate", f"{share * bound:.1f}")
                    found[name].setdefault(f"open-{share:g}", []).append(row)
    return found


def _spread(rows: list[Row], key: str, digits: int) -> str:
    values = [row[key] for row in rows]
    if any(map(math.isnan, values)):
        return "–"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def _show(title: str, found: dict[str, dict[str, list[Row]]]) -> None:
    print(f"\n{title}: median (range) of {REPEATS} interleaved repeats")
    print("| load | system | requests/s | p50 ms | p99 ms |\n|---|---|---:|---:|---:|")
    for kind in found["maep"]:
        for name in SYSTEMS:
            if rows := found[name].get(kind):
                cells = [_spread(rows, "rate", 1), _spread(rows, "p50_ms", 2), _spread(rows, "p99_ms", 2)]
                print(f"| {kind} | {name} | {' | '.join(cells)} |")


def _median(found: dict[str, dict[str, list[Row]]], name: str, load: str, key: str = "rate") -> float:
    return statistics.median(row[key] for row in found[name][load])


def _litserve(found: dict[str, dict[str, list[Row]]], load: str, key: str = "rate") -> float:
    """LitServe at the better of its two waits."""
    both = [_median(found, name, load, key) for name in SYSTEMS if name.startswith("litserve")]
    return max(both) if key == "rate" else min(both)


def _judge(claims: dict[str, tuple[float, str, float]]) -> None:
    """Prints each claim with what was measured; all are printed before the first that does not hold fails."""
    missed = []
    for claim, (value, sign, bound) in claims.items():
        holds = value >= bound if sign == ">=" else value <= bound
        print(f"{'reached' if holds else 'MISSED '}  {claim}: {value:.3f} {sign} {bound:g}")
        missed += [] if holds else [claim]
    assert not missed


@pytest.mark.timeout(3600)
def test_one_core_and_images_of_32_pixels(libraries: str, tmp_path: Path) -> None:
    """`bundled:cifar10`, PNG in and out."""
    case = Case("bundled:cifar10", "png", 32, pictures(tmp_path / "bodies", 32, "png"))
    found = measure(case, libraries)
    _show("32 x 32 PNG, server on one core", found)
    claims: dict[str, tuple[float, str, float]] = {}
    for load in ("closed-8", "closed-32"):
        ours = _median(found, "maep", load)
        claims[f"{load}: over LitServe"] = (ours / _litserve(found, load), ">=", 1.2)
        claims[f"{load}: over FastAPI with a batcher"] = (ours / _median(found, "fastapi", load), ">=", 0.95)
    for load in (f"open-{share:g}" for share in OPEN_SHARES):
        late = _median(found, "maep", load, "p99_ms") / _litserve(found, load, "p99_ms")
        claims[f"{load}: p99 over LitServe's"] = (late, "<=", 1.0)
    alone = _median(found, "maep", "closed-1", "p50_ms") - _median(found, "in-process", "closed-1", "p50_ms")
    claims["closed-1: p50 over in-process, ms"] = (alone, "<=", 1.5)
    _judge(claims)


@pytest.mark.timeout(3600)
def test_two_cores_and_images_of_32_pixels(libraries: str, tmp_path: Path) -> None:
    """Two workers; server and load share both cores, as on a small machine."""
    bodies = pictures(tmp_path / "bodies", 32, "png")
    case = Case("bundled:cifar10", "png", 32, bodies, cores="0,1", core_of_load=None, workers=2, clients=(32,))
    found = measure(case, libraries, open_loop=False)
    _show("32 x 32 PNG, server and load on two cores", found)
    ours = _median(found, "maep", "closed-32")
    _judge({"closed-32: over LitServe": (ours / _litserve(found, "closed-32"), ">=", 1.0)})


@pytest.mark.timeout(3600)
def test_one_core_and_a_vit_s_of_224_pixels(libraries: str, tmp_path: Path) -> None:
    """Random weights, raw pixels in and out: what is left of a server's share when models grow."""
    torch.manual_seed(0)
    model = build_model({"name": "purifier", "mae": {"preset": "S/16", "image_size": [224, 224]}})
    described = {"model": config.to_dict(model.config)}
    saved = artifact.write(tmp_path / "model", "purifier", described, model.state_dict(), "# Random weights\n")
    bodies = pictures(tmp_path / "bodies", 224, "raw", 8)
    case = Case(str(saved.folder), "raw", 224, bodies, clients=(8,), seconds=20)
    found = measure(case, libraries, open_loop=False)
    _show("ViT-S/16, 224 x 224 raw, server on one core", found)
    ours = _median(found, "maep", "closed-8")
    _judge(
        {
            "closed-8: over LitServe": (ours / _litserve(found, "closed-8"), ">=", 0.95),
            "closed-8: over in-process": (ours / _median(found, "in-process", "closed-8"), ">=", 0.9),
        }
    )
