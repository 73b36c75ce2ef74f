"""Runs a search's pieces of work: on Ray Tune, as many at once as there is room for, or here, one after the other.

Ray Tune places each piece, keeps the processes (`reuse_actors`: to start one takes longer than many a trial), starts a
piece anew whose process or machine died, and takes those that it hands out from our `Search`, which is its searcher. It
decides nothing: its own ASHA and Optuna decide by who comes first (`halving`, `suggest`), and what it
keeps on disk to go on from is a pickle, while ours are the trials' own files. A pause at a rung is the end of a piece.

A trial of one process has its processors as Tune's placement group. A trial of several workers is a TorchTrainer, which
places its workers itself; the piece that starts it takes no processor, or the pieces would hold what their own workers
wait for. So many pieces are handed out as their workers have room for together, and none waits for another.
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

from maep import cluster, config, memory
from maep.errors import UnavailableError, WriteError
from maep.train.ray.workers import logical_cpus, rooted
from maep.tune.config import TuneConfig
from maep.tune.search.rounds import Search, Work
from maep.tune.search.space import Settings
from maep.tune.trial import run

_TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is for the command to hear
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def do(output: Path, search: TuneConfig, number: int, settings: Settings, rung: int | None) -> str | None:
    """Does a piece of work, and returns why it failed: a diverged loss, no memory, data that this machine lacks.

    Raises WriteError or UnavailableError for what is not the trial's fault and would stand against it for ever: a full
    disk, a store that does not answer.
    """
    try:
        made = run.make(search, number, settings)
        if rung is None:
            run.pretrain(output, search, made)
        else:
            run.reach(output, search, made, rung)
    except MemoryError:
        return "out of memory"
    except (WriteError, UnavailableError):
        raise
    except Exception as error:  # whatever it is, the search goes on with the others
        return " ".join(f"{error}".split())[:300] or type(error).__name__
    return None


def here(search: Search) -> None:
    """All of it in this process, one piece after the other."""
    placed = located(search.config)
    while not search.is_finished:
        work = search.next()
        assert work is not None
        search.ended(work, do(search.output, placed, work.trial.number, work.trial.settings, work.rung))


def located(search: TuneConfig) -> TuneConfig:
    """`search` with no path that another working directory would change."""
    first = search.pretrain
    finetune = rooted(search.finetune)
    pretrain = None if first is None else rooted(first)
    return replace(search, pretrain=pretrain, finetune=finetune)  # type: ignore[arg-type]


def need(search: TuneConfig) -> dict[str, float]:
    """What a trial takes of the cluster, by resource."""
    phases = [phase for phase in (search.pretrain, search.finetune) if phase is not None]
    cpus = max(logical_cpus(phase) or search.cpus_per_trial for phase in phases)
    gpus = max(phase.workers.most * int(phase.workers.use_gpu) or search.gpus_per_trial for phase in phases)
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def concurrency(search: TuneConfig, least: int = 0) -> int:
    """How many trials the connected cluster has room for. Raises UnavailableError where it is fewer than `least`.

    A trial of one process has to find all that it takes on one machine; workers spread over them.
    """
    wanted = need(search)
    places, where = ([cluster.resources()], "cluster") if _has_workers(search) else (cluster.machines(), "machine")
    total = sum(fits(wanted, place) for place in places)
    if total < least:
        taken = " and ".join(f"{amount:g} {kind}s" for kind, amount in wanted.items())
        most = " and ".join(f"{max(place.get(kind, 0) for place in places):g} {kind}s" for kind in wanted)
        raise UnavailableError(
            f"a trial takes {taken}, no {where} has that (at most {most}): lower cpus_per_trial, gpus_per_trial or"
            " finetune.workers, or name another --address"
        )
    return total


def fits(wanted: Mapping[str, float], place: Mapping[str, float]) -> int:
    """How many times `wanted` goes into what a place has, both by resource."""
    return min(int(place.get(kind, 0) / amount + 1e-9) for kind, amount in wanted.items())


@contextmanager
def room(search: TuneConfig, output: Path, address: str | None = None) -> Iterator[None]:
    """A connection to the cluster at `address`, or to a local one of this process alone, that has room for a trial.

    Raises UnavailableError where nothing answers there, Ray does not start here, there is no such room, or a machine
    does not see `output`.
    """
    with cluster.session(address, need(search)["CPU"]):
        concurrency(search, least=1)
        check_shared(output)
        yield


def check_shared(output: Path) -> None:
    """Raises UnavailableError where a machine of the connected cluster does not see `output`.

    A search is made of the files there, so what a trial left on a disk of its own would be lost.
    """
    with _scratch(output) as folder:
        blind = [address for address, sees in cluster.on_each_machine(os.path.isdir, str(folder)).items() if not sees]
    if blind:
        raise UnavailableError(
            f"--output {output}: machine {blind[0]} of the cluster does not see it: name a folder that all share"
        )


def on_ray(search: Search) -> None:
    """All of it on the connected cluster. Raises UnavailableError where Ray ends before the search does."""
    settings = search.config
    with _environment(), _scratch(search.output) as scratch:
        from ray import tune

        logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # misses Tune's own logs
        handing = _searcher(search)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(
                    _piece, output=str(search.output.absolute()), search=config.to_dict(located(settings))
                ),
                tune.PlacementGroupFactory([_bundle(settings)]),
            ),
            tune_config=tune.TuneConfig(
                search_alg=handing,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="pieces",
                storage_path=str(scratch),
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                callbacks=[_silence()],
                verbose=0,
            ),
        )
        tuner.fit()
    if handing.fault is not None:
        raise handing.fault
    if not search.is_finished:
        raise UnavailableError("Ray Tune ended before the search did: see the lines above; --resume goes on")


def _bundle(search: TuneConfig) -> dict[str, float]:
    """What Tune reserves for a piece."""
    if _has_workers(search):
        return {"memory": 1.0}  # a byte: the workers take the processors, and a bundle of nothing there is not
    return need(search)


def _has_workers(search: TuneConfig) -> bool:
    return any(phase.workers.most for phase in (search.pretrain, search.finetune) if phase is not None)


def _piece(values: dict[str, Any], output: str, search: dict[str, Any]) -> dict[str, Any]:
    """A piece of work in a process of Ray's."""
    import torch

    settings = config.build(TuneConfig, search)
    torch.set_num_threads(max(1, int(settings.cpus_per_trial)))
    if "GPU" not in need(settings):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of what it has not asked for, Ray hides nothing from it
    try:
        failure = do(Path(output), settings, values["number"], json.loads(values["settings"]), values["rung"])
    except (WriteError, UnavailableError) as fault:
        return {"failure": None, "fault": f"{fault}"}
    finally:
        memory.give_back()
    return {"failure": failure, "fault": None}


def _name(piece: Any) -> str:
    """What Ray shows of a piece, and calls its folder."""
    name: str = piece.config["name"]
    return name


def _silence() -> Any:
    """In the place of what Tune adds to say, on standard output, what has ended, whatever `verbose` is."""
    from ray.tune.progress_reporter import TrialProgressCallback

    class Silence(TrialProgressCallback):  # type: ignore[misc]
        def _print(self, msg: str) -> None:
            pass

    return Silence()


def _searcher(search: Search) -> Any:
    """The search as Ray Tune asks it for work."""
    from ray.tune.search import Searcher

    class Handing(Searcher):  # type: ignore[misc]
        """Hands out what can begin, and hears what has ended.

        Tune logs what is raised where it tells of an end, and asks for the same again: so a fault of the search itself
        (a full disk) is kept, and raised where it is asked for more.
        """

        def __init__(self) -> None:
            super().__init__(metric="failure", mode="min")
            self.running: dict[str, Work] = {}
            self.fault: Exception | None = None

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return dict, ()  # Tune keeps a copy to go on from, which nobody will read

        def suggest(self, trial_id: str) -> Any:
            if self.fault is not None:
                raise self.fault
            if search.is_finished:
                return Searcher.FINISHED
            if len(self.running) >= concurrency(search.config):
                return None
            work = search.next()
            if work is None:
                return None
            self.running[trial_id] = work
            settings = json.dumps(work.trial.settings)
            return {"name": work.name, "number": work.trial.number, "settings": settings, "rung": work.rung}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            work = self.running.pop(trial_id)
            try:
                if error or result is None:
                    times = search.config.max_failures + 1
                    search.ended(work, f"its process died {times} times: out of memory, its machine, or what Ray says")
                elif result["fault"] is not None:
                    raise UnavailableError(f"{result['fault']} (--resume goes on with the search)")
                else:
                    search.ended(work, result["failure"])
            except Exception as fault:
                self.fault = fault

        def save(self, checkpoint_path: str) -> None:
            pass  # a search goes on from its output

    return Handing()


@contextmanager
def _environment() -> Iterator[None]:
    """What Ray Tune reads from the environment, while it runs."""
    before = {name: os.environ.get(name) for name in _TUNE}
    os.environ.update(_TUNE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder for what Ray Tune writes, on the storage that all machines see; nothing of it is kept."""
    output.mkdir(parents=True, exist_ok=True)
    for left in output.glob(".ray-*"):  # by a search that was killed
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=".ray-", dir=output.absolute()))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
