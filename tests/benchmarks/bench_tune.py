"""Halving with TPE against random search on the digits: the share of random's images that it takes to reach the target.

For each seed both searches try as many settings of the same space with the same budget a trial. The target is the
median over the seeds of random search's best, less one standard error of an accuracy of so many images. It is reached
by a trial that was trained to its end, and images are counted as they are seen: all of a generation's first rungs come
before its second ones, a pretraining counts in full, a stopped trial as far as it went. `share` is of all the images
that random search saw to find its best; beside it stands how many it had seen when it first reached the target, which
is luck in good part. A search that does not reach the target is said not to. About an hour on one core.

`BENCH_TUNE_SEEDS=0` (a list; 0,1,2,3,4 by default) chooses the seeds. The searches lie in `BENCH_TUNE_OUTPUT`, where
that is given: what has ended there is not done again, so processes of some seeds each may work before one of all.
"""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path

import pytest
from tune_toys import run_here

from maep import config
from maep.tune import record
from maep.tune.config import TuneConfig
from maep.tune.record import TrialRecord
from maep.tune.search.rounds import Search
from maep_jobs.config_files import find
from maep_jobs.search.run import train_classifiers

OBJECTIVE = "adaptive_accuracy"
NUM_TRIALS = 24
MOST = 0.5
"""Of random's images."""


def searches(seed: int) -> dict[str, TuneConfig]:
    """The two searches of a seed: the shipped one, and random search without halving over the same space."""
    values = config.read_yaml(find("digits/tune"))
    values.pop("tracking", None)
    values |= {"seed": seed, "num_trials": NUM_TRIALS, "objectives": [OBJECTIVE]}
    tpe = config.build(TuneConfig, values)
    return {"random": config.build(TuneConfig, values | {"searcher": "random", "halving": None}), "asha+tpe": tpe}


def images_to(target: float, settings: TuneConfig, output: Path) -> tuple[int, bool]:
    """Images until a trial is at its end and at least as good as `target`, and whether one is."""
    steps = []
    for each in record.read_all(output):
        before, points = 0, record.curve(output, each.trial_id)
        for rung, point in enumerate(points):
            reached = each.status == "done" and rung == len(points) - 1 and point.objectives[OBJECTIVE] >= target
            steps.append((each.number // settings.generation, rung, each.number, point.samples_seen - before, reached))
            before = point.samples_seen
    seen = 0
    for *_, images, reached in sorted(steps):
        seen += images
        if reached:
            return seen, True
    return seen, False


def best(ended: list[TrialRecord]) -> float:
    """The best of the trials that were trained to their end."""
    return max((each.objectives[OBJECTIVE] for each in ended if each.status == "done"), default=0.0)


@pytest.mark.timeout(7200)
def test_asha_with_tpe_reaches_random_searchs_best_with_half_its_images(tmp_path: Path) -> None:
    seeds = [int(word) for word in os.environ.get("BENCH_TUNE_SEEDS", "0,1,2,3,4").split(",")]
    found: dict[int, dict[str, list[TrialRecord]]] = {}
    place = Path(os.environ.get("BENCH_TUNE_OUTPUT", tmp_path)).absolute()
    shared = place / "shared"  # one classifier, and so one set of attacked images, for all searches
    for seed in seeds:
        found[seed] = {}
        for name, settings in searches(seed).items():
            output = place / f"{name}-{seed}"
            run_here(Search(train_classifiers(settings, shared), output))
            found[seed][name] = record.read_all(output)
    bests = {seed: best(runs["random"]) for seed, runs in found.items()}
    middle = statistics.median(bests.values())
    images = next(each.counts[OBJECTIVE][1] for each in found[seeds[0]]["random"] if each.status == "done")
    target = middle - math.sqrt(middle * (1 - middle) / images)
    print(
        f"\ntarget {target:.3f}: the median of random's best, {middle:.3f}, less one standard error of {images} images"
    )
    print("| seed | random's best | all its images | to the target | halving's best | to the target | share |")
    print("|---|---|---|---|---|---|---|")
    shares = []
    for seed, runs in found.items():
        (random, by_random), (ours, by_us) = (
            images_to(target, searches(seed)[name], place / f"{name}-{seed}") for name in ("random", "asha+tpe")
        )
        whole = sum(each.budget.samples_seen for each in runs["random"])
        shares.append(ours / whole if by_us else math.inf)
        reached = [
            f"{count:,}" if is_there else "not reached" for count, is_there in ((random, by_random), (ours, by_us))
        ]
        cells = [f"{bests[seed]:.3f}", f"{whole:,}", reached[0], f"{best(runs['asha+tpe']):.3f}", reached[1]]
        print(f"| {seed} | {' | '.join(cells)} | {shares[-1]:.2f} |")
    print(f"median share {statistics.median(shares):.2f}")
    assert statistics.median(shares) <= MOST
