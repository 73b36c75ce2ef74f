"""Run the tasks of an evaluation in this process or on Ray workers of one thread each.

Tasks come as chains: those of a chain run one after the other, chains run independently. When a worker dies, only its
current task is repeated; finished tasks are files of the driver.
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
from maep.evaluate.protocol.tasks import Inputs, Task

Chain = Sequence[Task]
Finished = Callable[[Task], None]
_ATTEMPTS = 3
_START_TIMEOUT_S = 300.0


@contextmanager
def pool(context: Context) -> Iterator[Callable[[Sequence[Chain], Finished], None]]:
    """Yields `run(chains, finished)`, which runs all tasks that are not done and calls `finished` after each.

    The first error ends it. `config.num_workers` decides the number of workers and changes no figure.
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

    def run(self, task: Task, inputs: Inputs) -> dict[Path, bytes]:
        return task.run(self.context, inputs)


class _Workers:
    """Ray actors, each running one task at a time."""

    def __init__(self, context: Context) -> None:
        import ray

        self.context = context
        self.sent = ray.put(context)
        self.actors = [self._start() for _ in range(context.config.num_workers)]

    def _start(self) -> Any:
        import ray

        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        return ray.remote(num_cpus=1, runtime_env={"env_vars": threads})(_Worker).remote(self.sent)

    def close(self) -> None:
        """Ends the workers."""
        import ray

        for actor in self.actors:
            ray.kill(actor)

    def run(self, chains: Sequence[Chain], finished: Finished) -> None:
        """Runs all `chains`, in their order as far as workers are free."""
        import ray

        left = (deque(task for task in chain if not task.is_done(self.context)) for chain in chains)
        waiting = deque(chain for chain in left if chain)
        busy = {actor.ready.remote(): (actor, deque[Task]()) for actor in self.actors}
        attempts: dict[Task, int] = {}
        timeout: float | None = _START_TIMEOUT_S
        while waiting or any(chain for _, chain in busy.values()):
            done, _ = ray.wait(list(busy), num_returns=1, timeout=timeout)
            if not done:
                raise UnavailableError(
                    f"the cluster started no evaluation worker within {timeout:.0f} s: free a CPU, or lower num_workers"
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
                    _write(files)
                    finished(chain.popleft())
            if not chain and waiting:
                chain = waiting.popleft()
            if chain:
                busy[actor.run.remote(chain[0], chain[0].inputs(self.context))] = (actor, chain)

    def _replace(self, actor: Any, chain: deque[Task], attempts: dict[Task, int], error: Exception) -> Any:
        """Starts a worker in the place of one that died. Raises UnavailableError once its task has failed too often."""
        if chain:
            attempts[chain[0]] = attempts.get(chain[0], 1) + 1
            if attempts[chain[0]] > _ATTEMPTS:
                reason = str(error).strip().splitlines()[0]
                raise UnavailableError(
                    f"{chain[0].label}: {_ATTEMPTS} workers died while running it (out of memory?): {reason};"
                    " repeat the command with fewer num_workers or a smaller batch_size to resume"
                )
        self.actors.remove(actor)
        self.actors.append(self._start())
        return self.actors[-1]
