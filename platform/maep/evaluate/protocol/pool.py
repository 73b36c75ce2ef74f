"""Who does the tasks of an evaluation: this process, or Ray workers of one thread each.

Tasks come as chains, whose tasks are done one after the other; chains do not wait for each other. A worker that dies
costs the task it was at, which is done again; what was finished lies with the driver.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from maep import cluster, memory, storage
from maep.errors import UnavailableError
from maep.evaluate.protocol import tasks
from maep.evaluate.protocol.context import Bench

Chain = Sequence[tasks.Task]
_ATTEMPTS = 3
_START_TIMEOUT_S = 300.0


@contextmanager
def pool(bench: Bench) -> Iterator[Callable[[Sequence[Chain], Callable[[tasks.Task], None]], None]]:
    """Gives `run(chains, tick)`, which does all tasks that are not done and calls `tick` after each.

    The first error ends it. `config.num_workers` decides how many work, and changes no figure.
    """
    with one_thread():
        if bench.config.num_workers == 1:
            yield lambda chains, tick: _run_here(bench, chains, tick)
            return
        with _session(bench):
            workers = _Workers(bench)
            try:
                yield workers.run
            finally:
                workers.close()


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread while the block runs: sums in another order would be other sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _session(bench: Bench) -> AbstractContextManager[None]:
    return cluster.session(bench.config.address, bench.config.num_workers)


def _run_here(bench: Bench, chains: Sequence[Chain], tick: Callable[[tasks.Task], None]) -> None:
    memory.keep_freed()
    for task in itertools.chain.from_iterable(chains):
        if not tasks.is_done(bench, task):
            _keep(tasks.do(bench, task, tasks.given(bench, task)))
            tick(task)


def _keep(files: Mapping[Path, bytes]) -> None:
    for path, data in files.items():
        storage.write_bytes(path, data)


class _Worker:
    """One process of one thread; a Ray actor."""

    def __init__(self, bench: Bench) -> None:
        torch.set_num_threads(1)
        memory.keep_freed()
        self.bench = bench

    def ready(self) -> None:
        """Answers once the bench has arrived."""

    def do(self, task: tasks.Task, inputs: tasks.Given) -> Any:
        return tasks.do(self.bench, task, inputs)


class _Workers:
    """Ray actors, each doing one task at a time."""

    def __init__(self, bench: Bench) -> None:
        import ray

        self.bench = bench
        self.sent = ray.put(bench)
        self.actors = [self._start() for _ in range(bench.config.num_workers)]

    def _start(self) -> Any:
        import ray

        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        made = ray.remote(num_cpus=1, runtime_env={"env_vars": threads})(_Worker)
        return made.remote(self.sent)

    def close(self) -> None:
        """Ends the workers."""
        import ray

        for actor in self.actors:
            ray.kill(actor)

    def run(self, chains: Sequence[Chain], tick: Callable[[tasks.Task], None]) -> None:
        """Does all `chains`, in their order as far as workers are free."""
        import ray

        waiting = deque(left for chain in chains if (left := self._open(chain)))
        busy = {actor.ready.remote(): (actor, deque[tasks.Task]()) for actor in self.actors}
        attempts: dict[tasks.Task, int] = {}
        timeout: float | None = _START_TIMEOUT_S
        while waiting or any(chain for _, chain in busy.values()):
            done, _ = ray.wait(list(busy), num_returns=1, timeout=timeout)
            if not done:
                raise UnavailableError(
                    f"the cluster placed no worker of the evaluation in {timeout:.0f} s: free a CPU, or use fewer"
                    " num_workers"
                )
            timeout = None
            actor, chain = busy.pop(done[0])
            try:
                files = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None
            except ray.exceptions.RayActorError as error:
                actor = self._replace(actor, chain, attempts, error)
            else:
                if chain:
                    _keep(files)
                    tick(chain.popleft())
            if not chain and waiting:
                chain = waiting.popleft()
            if chain:
                busy[actor.do.remote(chain[0], tasks.given(self.bench, chain[0]))] = (actor, chain)

    def _open(self, chain: Chain) -> deque[tasks.Task]:
        return deque(task for task in chain if not tasks.is_done(self.bench, task))

    def _replace(self, actor: Any, chain: deque[tasks.Task], attempts: dict[tasks.Task, int], error: Exception) -> Any:
        """A new worker for one that died; the task it was at is tried again, but not for ever."""
        if chain:
            attempts[chain[0]] = attempts.get(chain[0], 1) + 1
            if attempts[chain[0]] > _ATTEMPTS:
                reason = str(error).strip().splitlines()[0]
                raise UnavailableError(
                    f"{chain[0].label}: {_ATTEMPTS} workers died at it (out of memory?): {reason}; the same command"
                    " goes on where it was, with fewer num_workers or a smaller batch_size"
                )
        self.actors.remove(actor)
        self.actors.append(self._start())
        return self.actors[-1]
