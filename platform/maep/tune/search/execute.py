"""Runs the work items of a search on Ray Tune, as many at once as fit.

Ray Tune places the items, reuses processes (`reuse_actors`: starting one can take longer than a trial), restarts items
whose process or node died, and asks our `Search`, its searcher, for more. It decides nothing: its ASHA and Optuna
depend on arrival order (see `halving` and `suggest`), and it would resume from a pickle, whereas we resume from the
trials' own files. A trial that pauses at a rung ends its item.

Tune's placement group of a single-process trial holds the CPUs of that trial. A trial of several workers is a
TorchTrainer, which places its own workers; its item reserves no CPU, because its workers would wait for that CPU for
ever. Only as many items are handed out as have room for their workers, so none waits for another.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from maep import cluster, memory
from maep.errors import UnavailableError, WriteError
from maep.train.ray.workers import logical_cpus, with_absolute_paths
from maep.tune.config import TuneConfig
from maep.tune.search.rounds import Search, WorkItem
from maep.tune.search.space import Settings
from maep.tune.trial import run as trial_run
from maep.tune.trial.trial import make_trial

_TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the command handles Ctrl-C
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def do(output: Path, search: TuneConfig, number: int, settings: Settings, rung: int | None) -> str | None:
    """Does a work item. Returns the reason if it failed: a diverged loss, out of memory, missing data.

    Raises WriteError or UnavailableError for a fault of the machine, such as a full disk: the trial is not to blame.
    """
    try:
        trial = make_trial(search, number, settings)
        if rung is None:
            trial_run.pretrain(output, search, trial)
        else:
            trial_run.finetune_to(output, search, trial, rung)
    except MemoryError:
        return "out of memory"
    except (WriteError, UnavailableError):
        raise
    except Exception as error:  # the other trials continue
        return " ".join(f"{error}".split())[:300] or type(error).__name__
    return None


def located(search: TuneConfig) -> TuneConfig:
    """`search` with absolute paths."""
    pretrain = None if search.pretrain is None else with_absolute_paths(search.pretrain)
    return replace(search, pretrain=pretrain, finetune=with_absolute_paths(search.finetune))  # type: ignore[arg-type]


def need(search: TuneConfig) -> dict[str, float]:
    """The resources of a trial, by name."""
    phases = [phase for phase in (search.pretrain, search.finetune) if phase is not None]
    cpus = max(logical_cpus(phase) or search.cpus_per_trial for phase in phases)
    gpus = max(phase.workers.most * int(phase.workers.use_gpu) or search.gpus_per_trial for phase in phases)
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def concurrency(search: TuneConfig, least: int = 0) -> int:
    """How many trials fit on the connected cluster at once. Raises UnavailableError for fewer than `least`.

    A single-process trial must fit on one machine; workers may spread over several.
    """
    wanted = need(search)
    places, where = ([cluster.resources()], "cluster") if _has_workers(search) else (cluster.machines(), "machine")
    total = sum(fits(wanted, place) for place in places)
    if total < least:
        taken = " and ".join(f"{amount:g} {kind}s" for kind, amount in wanted.items())
        most = " and ".join(f"{max(place.get(kind, 0) for place in places):g} {kind}s" for kind in wanted)
        raise UnavailableError(
            f"a trial needs {taken}, but no {where} has more than {most}: lower cpus_per_trial, gpus_per_trial or"
            " finetune.workers, or choose another --address"
        )
    return total


def fits(wanted: Mapping[str, float], place: Mapping[str, float]) -> int:
    """How many times the resources `wanted` fit into those of a place."""
    return min(int(place.get(kind, 0) / amount + 1e-9) for kind, amount in wanted.items())


@contextmanager
def room(search: TuneConfig, output: Path, address: str | None = None) -> Iterator[None]:
    """A connection to the cluster at `address`, or to a new local one, checked to have room for a trial.

    Raises UnavailableError where there is no cluster, Ray does not start, no trial fits, or a machine cannot see
    `output`.
    """
    with cluster.session(address, need(search)["CPU"]):
        concurrency(search, least=1)
        check_shared(output)
        yield


def check_shared(output: Path) -> None:
    """Raises UnavailableError where a machine of the connected cluster cannot see `output`."""
    with _scratch(output) as folder:
        blind = [address for address, sees in cluster.on_each_machine(os.path.isdir, str(folder)).items() if not sees]
    if blind:
        raise UnavailableError(
            f"--output {output}: machine {blind[0]} of the cluster cannot see it: choose a folder that all share"
        )


def on_ray(search: Search) -> None:
    """Runs the search on the connected cluster. Raises UnavailableError where Ray ends before the search does."""
    settings = search.config
    os.environ.update(_TUNE)
    # a bundle may not be empty: one byte of memory where the workers take the CPUs
    bundle = {"memory": 1.0} if _has_workers(settings) else need(settings)
    with _scratch(search.output) as scratch:
        from ray import tune

        # it warns that there are no Tune logs
        logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
        searcher = _searcher(search)
        run_item = tune.with_parameters(_run_item, output=search.output.absolute(), search=located(settings))
        tuner = tune.Tuner(
            tune.with_resources(run_item, tune.PlacementGroupFactory([bundle])),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="items",
                storage_path=str(scratch),
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                callbacks=[_silence()],
                verbose=0,
            ),
        )
        tuner.fit()
    if searcher.fault is not None:
        raise searcher.fault
    if not search.is_finished:
        raise UnavailableError("Ray Tune ended before the search did (see the log above): resume it with --resume")


def _has_workers(search: TuneConfig) -> bool:
    return any(phase.workers.most for phase in (search.pretrain, search.finetune) if phase is not None)


def _run_item(values: dict[str, Any], output: Path, search: TuneConfig) -> dict[str, Any]:
    """Does a work item in a Ray process."""
    import torch

    torch.set_num_threads(max(1, int(search.cpus_per_trial)))
    if "GPU" not in need(search):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides only GPUs of other tasks
    try:
        failure = do(output, search, values["number"], json.loads(values["settings"]), values["rung"])
    except (WriteError, UnavailableError) as fault:
        return {"failure": None, "fault": f"{fault}"}
    finally:
        memory.give_back()
    return {"failure": failure, "fault": None}


def _name(item: Any) -> str:
    """The name of an item and of its folder in Ray."""
    name: str = item.config["name"]
    return name


def _silence() -> Any:
    """Replaces the callback with which Tune prints ended trials to standard output, whatever `verbose` is."""
    from ray.tune.progress_reporter import TrialProgressCallback

    class Silence(TrialProgressCallback):  # type: ignore[misc]
        def _print(self, msg: str) -> None:
            pass

    return Silence()


def _searcher(search: Search) -> Any:
    """The search as a searcher of Ray Tune."""
    from ray.tune.search import Searcher

    class ItemSearcher(Searcher):  # type: ignore[misc]
        """Hands out items and reports to the search when they end.

        Tune merely logs an exception raised in `on_trial_complete` and calls it again. So a fault of the search itself,
        such as a full disk, is stored and raised when Tune asks for the next item.
        """

        def __init__(self) -> None:
            super().__init__(metric="failure", mode="min")
            self.running: dict[str, WorkItem] = {}
            self.fault: Exception | None = None

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return dict, ()  # Tune saves a copy to resume from; it is not used

        def suggest(self, trial_id: str) -> Any:
            if self.fault is not None:
                raise self.fault
            if search.is_finished:
                return Searcher.FINISHED
            if len(self.running) >= concurrency(search.config):
                return None
            item = search.next_item()
            if item is None:
                return None
            self.running[trial_id] = item
            settings = json.dumps(item.trial.settings)
            return {"name": item.name, "number": item.trial.number, "settings": settings, "rung": item.rung}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            item = self.running.pop(trial_id)
            try:
                if error or result is None:
                    times = search.config.max_failures + 1
                    search.end_item(
                        item, f"its process or machine died {times} times, perhaps out of memory: see Ray's log"
                    )
                elif result["fault"] is not None:
                    raise UnavailableError(f"{result['fault']} (resume the search with --resume)")
                else:
                    search.end_item(item, result["failure"])
            except Exception as fault:
                self.fault = fault

        def save(self, checkpoint_path: str) -> None:
            pass  # a search resumes from its output

    return ItemSearcher()


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A temporary folder for Ray Tune on the storage that all machines share."""
    output.mkdir(parents=True, exist_ok=True)
    for left in output.glob(".ray-*"):  # left by a killed search
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=".ray-", dir=output.absolute()))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
