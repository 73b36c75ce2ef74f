"""The loader `ray`: Ray Data reads, decodes and augments outside the training processes, on free CPUs.

Each training worker has its own stream, with one task for each step, which makes the same part as the loader `stream`.
Ray Data starts no more tasks while its share of the object store is full.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any

import torch

from maep.data.config import LoaderConfig
from maep.data.reading.shards import EncodedGroup
from maep.data.stream.loaders import part_bytes
from maep.data.stream.plan import BatchPlan, Sampling
from maep.data.stream.streaming import Loaded, StreamedImages, StreamLoader, assemble
from maep.errors import DataError, UnavailableError

SEGMENT = 500
"""Steps of one execution of Ray Data; its bookkeeping of finished steps grows with each."""
_GROUPS_KEPT = 4


class RayLoader(StreamLoader):
    """Parts decoded by Ray tasks; made inside a Ray Train worker, for its rank."""

    def __init__(self, images: StreamedImages, sampling: Sampling, device: torch.device, loader: LoaderConfig) -> None:
        super().__init__(images, sampling, device)
        self.loader = loader

    def _loaded(self, first_step: int, stop_step: int) -> Generator[Loaded, None, None]:
        import ray
        from ray.exceptions import RayError

        source = ray.put((self.images, self.plan.sampling))
        cpus = _free_cpus(self.plan.sampling.size, self.loader.cpus)
        for start in range(first_step, stop_step, SEGMENT):
            batches = self._segment(source, list(range(start, min(start + SEGMENT, stop_step))), cpus)
            try:
                yield from batches
            except RayError as error:
                raise _cause(error) from None
            finally:
                if hasattr(batches, "close"):
                    batches.close()

    def _segment(self, source: Any, steps: list[int], cpus: float) -> Any:
        """Ray Data's iterator over the parts of `steps`."""
        import ray.data

        parts = ray.data.from_items(steps, override_num_blocks=len(steps)).map_batches(
            _task(source), batch_size=None, num_cpus=self.loader.cpus
        )
        context, sampling = parts.context, self.plan.sampling
        context.enable_progress_bars = context.print_on_execution_start = False
        options = context.execution_options
        options.preserve_order = True
        # memory for the prefetched parts of steps, and for as many in progress
        memory = 2 * self.loader.prefetch * part_bytes(sampling, self.images.image_shape)
        options.resource_limits = type(options.resource_limits)(cpu=cpus, object_store_memory=memory)
        batches = parts.iter_batches(
            batch_size=sampling.share, batch_format="numpy", prefetch_batches=self.loader.prefetch
        )
        return iter(batches)


def _task(source: Any) -> Callable[[Loaded], Loaded]:
    """The task that turns a step into this worker's part of its batch."""

    def load(batch: Loaded) -> Loaded:
        (step,) = batch["item"].tolist()
        images, plan, read = _opened(source)
        return assemble(images, plan, step, read)

    return load


@functools.lru_cache(maxsize=2)
def _opened(source: Any) -> tuple[StreamedImages, BatchPlan, Callable[[int], EncodedGroup]]:
    """Images and plan, opened once per process, and a cached reader of groups; the next step may need them again."""
    import ray

    images, sampling = ray.get(source)
    read = functools.lru_cache(maxsize=_GROUPS_KEPT)(images.shards.read)
    return images, BatchPlan(images.shards.sizes, sampling), read


def _free_cpus(num_workers: int, wanted: float) -> float:
    """One worker's share of the logical CPUs that training leaves, for decoding.

    Raises UnavailableError where one task needs more: Ray Data would wait for ever.
    """
    import ray
    from ray.util import get_current_placement_group

    total = float(ray.cluster_resources().get("CPU", 0))
    group = get_current_placement_group()
    taken = sum(bundle.get("CPU", 0) for bundle in group.bundle_specs) if group is not None else 0
    share = (total - taken) / num_workers
    if share < wanted - 1e-6:
        raise UnavailableError(
            f"loader.cpus: each worker's loader needs {wanted:g}, but training takes {taken:g} of the cluster's"
            f" {total:g} CPUs: lower loader.cpus or workers.cpus_per_worker, or use loader.kind stream"
        )
    return share


def _cause(error: BaseException) -> BaseException:
    """Our own error inside Ray's wrappers, else Ray's error."""
    inner: BaseException | None = error
    while inner is not None:
        for kind in (DataError, UnavailableError):
            if isinstance(inner, kind):
                return kind(str(getattr(inner, "cause", inner)))  # Ray derives a class from both, with its own text
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
