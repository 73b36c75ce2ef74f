"""Run the tasks of an evaluation in this process or on Ray workers of one thread each.

Tasks come in chains: the tasks of a chain run in order, chains run independently. When a worker dies, only its
current task is repeated; the driver has written the files of finished tasks.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from maep import cluster, memory, storage
from maep.errors import UnavailableError
from maep.evaluate.protocol.context import Context
from maep.evaluate.protocol.tasks import EvaluationTask, Inputs

Chain = Sequence[EvaluationTask]
Finished = Callable[[EvaluationTask], None]
_ATTEMPTS = 3
_START_TIMEOUT_S = 300.0


@contextmanager
def pool(context: Context) -> Iterator[Callable[[Sequence[Chain], Finished], None]]:
    """Yields `run(chains, finished)`, which runs all tasks that are not done and calls `finished` after each.

    The first error ends the run. `config.num_workers` changes no figure.
    """
    with one_thread():
        if context.config.num_workers == 1:
            yield lambda chains, finished: _run_here(context, chains, finished)
            return
        with cluster.session(context.config.address, context.config.num_workers):
            workers = _Workers(context)
            try:
                yield workers.run
            finally:
                workers.close()


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block with PyTorch on one thread: the order of summation changes results."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_here(context: Context, chains: Sequence[Chain], finished: Finished) -> None:
    memory.keep_freed()
    for task in itertools.chain.from_iterable(chains):
        if not task.is_done(context):
            _write(task.run(context, task.inputs(context)))
            finished(task)


def _write(files: Mapping[Path, bytes]) -> None:
    for path, data in files.items():
        storage.write_bytes(path, data)


class _Worker:
    """One process of one thread; a Ray actor."""

    def __init__(self, context: Context) -> None:
        torch.set_num_threads(1)
        memory.keep_freed()
        self.context = context

    def ready(self) -> None:
        """Returns once the context has arrived."""

    def run(self, task: EvaluationTask, inputs: Inputs) -> dict[Path, bytes]:
        return task.run(self.context, inputs)


class _Workers:
    """Ray actors, each running one task at a time."""

    def __init__(self, context: Context) -> None:
        import ray

        self.context = context
        threads = {"env_vars": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}}
        # Ray restarts a worker that dies, and repeats the task that it was running.
        options = {"num_cpus": 1, "runtime_env": threads, "max_restarts": -1, "max_task_retries": _ATTEMPTS - 1}
        sent = ray.put(context)
        self.actors = [ray.remote(**options)(_Worker).remote(sent) for _ in range(context.config.num_workers)]

    def close(self) -> None:
        """Ends the workers."""
        import ray

        for actor in self.actors:
            ray.kill(actor)

    def run(self, chains: Sequence[Chain], finished: Finished) -> None:
        """Runs all `chains`, in order, as workers become free."""
        import ray

        left = (deque(task for task in chain if not task.is_done(self.context)) for chain in chains)
        waiting = deque(chain for chain in left if chain)
        busy = {actor.ready.remote(): (actor, deque[EvaluationTask]()) for actor in self.actors}
        timeout: float | None = _START_TIMEOUT_S
        while waiting or any(chain for _, chain in busy.values()):
            done, _ = ray.wait(list(busy), num_returns=1, timeout=timeout)
            if not done:
                raise UnavailableError(
                    f"the cluster started no evaluation worker within {timeout:.0f} s: free a CPU, or lower num_workers"
                )
            timeout = None
            actor, chain = busy.pop(done[0])
            files = self._result(done[0], chain)
            if chain:
                _write(files)
                finished(chain.popleft())
            if not chain and waiting:
                chain = waiting.popleft()
            if chain:
                busy[actor.run.remote(chain[0], chain[0].inputs(self.context))] = (actor, chain)

    def _result(self, reference: Any, chain: Sequence[EvaluationTask]) -> dict[Path, bytes]:
        import ray

        try:
            files: dict[Path, bytes] = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except ray.exceptions.RayActorError as error:
            what = chain[0].label() if chain else "starting a worker"
            raise UnavailableError(
                f"{what}: {_ATTEMPTS} workers died (out of memory?): {str(error).strip().splitlines()[0]};"
                " re-run the same command with fewer num_workers to resume"
            ) from None
        return files
