"""The protocol: every defence on every classifier in every threat model, in shards, resumable, and checked.

A killed evaluation goes on where it was when the same call is made again: each finished unit left its rows. The
figures depend neither on the number of workers nor on how often it was interrupted.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from maep import config, storage
from maep.artifact import Artifact
from maep.errors import ConfigError, UserError
from maep.evaluate.attacked_sets import AttackedSet
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.protocol import pool, tasks
from maep.evaluate.protocol.context import Bench, Setup, check
from maep.evaluate.protocol.presets import Column, Source, Step
from maep.evaluate.results import rows, summary
from maep.evaluate.results.summary import Result
from maep.evaluate.trust.checks import pair_checks, pair_flags

__all__ = ["EvaluateConfig", "Progress", "evaluate"]

IDENTITY = "evaluation.json"
_UNWRITABLE = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True)
class Progress:
    """After each task: tasks `done` of `total`, what was done last, seconds since the call and to its expected end."""

    done: int
    total: int
    label: str
    seconds: float
    eta_seconds: float | None


def evaluate(
    config: EvaluateConfig,
    purifiers: Mapping[str, str | Path | Artifact],
    output: str | Path,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Evaluates `purifiers` (name -> artifact, or its local folder) beside the baselines, into folder `output`.

    Raises ConfigError where `output` holds an evaluation of another configuration, and UserErrors of one line for
    what cannot be evaluated; nothing that was there is overwritten.
    """
    folders = {name: str(p.folder if isinstance(p, Artifact) else p) for name, p in purifiers.items()}
    _check_names(config, folders)
    setup = Setup(config, tuple(folders.items()), Path(output))
    try:
        return _evaluate(setup, progress or (lambda _: None))
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise UserError(f"cannot write the evaluation to {error.filename or output}: {error.strerror}") from None


def _evaluate(setup: Setup, progress: Callable[[Progress], None]) -> Result:
    bench = Bench(setup)
    with pool.one_thread():
        check(bench)
        identity = _identity(bench)
        _claim(setup.output, identity)
        if (setup.output / summary.RESULT).is_file():
            return summary.read(setup.output)
        crafts, rest = _crafts(bench), _rest(bench)
        clock = _Clock(bench, [*chain.from_iterable(crafts), *chain.from_iterable(rest)], progress)
        with pool.pool(bench) as run:
            run(crafts, clock.tick)
            for attacked in _sets(bench):
                if not attacked.is_finished:
                    attacked.finish()
            # Cascades start from the clean answers, which a worker may still be at, or have died at.
            run([part for part in rest if _is_clean(part)], clock.tick)
            run([part for part in rest if not _is_clean(part)], clock.tick)
        return _merge(bench, identity)


def _check_names(config: EvaluateConfig, folders: Mapping[str, str]) -> None:
    for name in folders:
        if name in config.baselines:
            raise ConfigError(f"purifier {name!r} has the name of a baseline: give it another")
        if not name:
            raise ConfigError("a purifier needs a name, which its rows are told apart by")
    if not folders and not config.baselines:
        raise ConfigError("nothing to evaluate: name a purifier or a baseline")


def _identity(bench: Bench) -> dict[str, Any]:
    """What decides the figures: an output folder belongs to exactly one of these."""
    classifiers = [bench.classifier(spec) for spec in bench.config.classifiers]
    return {
        "preset": bench.config.preset,
        "dataset": bench.image_list.dataset,
        "split": bench.image_list.split,
        "image_list": bench.image_list.name,
        "image_list_sha256": bench.image_list.sha256,
        "num_images": len(bench.image_list),
        "seed": bench.config.seed,
        "purifiers": {name: bench.defence(name).sha256 for name in bench.setup.names},
        "baselines": list(bench.config.baselines),
        "classifiers": {classifier.name: classifier.sha256 for classifier in classifiers},
        "config": {key: value for key, value in config.deciding(bench.config).items() if key != "classifiers"},
    }


def _claim(output: Path, identity: Mapping[str, Any]) -> None:
    path = output / IDENTITY
    text = json.dumps(identity, indent=2) + "\n"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != json.loads(text):
            differing = [key for key in identity if found.get(key) != json.loads(text)[key]]
            raise ConfigError(
                f"{output} holds an evaluation of another configuration ({', '.join(differing[:3])} differ):"
                " give another output folder"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} is not empty and holds no evaluation: give another output folder")
    storage.write_bytes(path, text.encode())


def _pairs(bench: Bench) -> list[tuple[str, str]]:
    """Every (defence, classifier), in the order of the table."""
    return [(name, spec) for spec in bench.config.classifiers for name in bench.setup.names]


def _sources(bench: Bench) -> list[tuple[Source, Step, int]]:
    """What is attacked once for all who see it: model, attack, number of images."""
    columns = (column for pair in _pairs(bench) for column in bench.columns(*pair))
    found = ((step.source, step, column.num_images) for column in columns for step in column.steps)
    return list(dict.fromkeys((source, step, count) for source, step, count in found if source is not None))


def _sets(bench: Bench) -> list[AttackedSet]:
    return [bench.attacked_set(*source) for source in _sources(bench)]


def _crafts(bench: Bench) -> list[pool.Chain]:
    """Those of finished sets are not looked for: their shards may lie packed elsewhere."""
    open_sources = [source for source in _sources(bench) if not bench.attacked_set(*source).is_finished]
    return [
        [tasks.Craft(*source, shard)]
        for source in open_sources
        for shard in range(bench.attacked_set(*source).num_shards)
    ]


def _rest(bench: Bench) -> list[pool.Chain]:
    """Clean answers first, which cascades start from; then shard by shard over all defences, so that the time to go is
    known early. No figure depends on the order.
    """
    probes: list[pool.Chain] = [[tasks.Probe(*pair)] for pair in _pairs(bench)]
    chains = [part for pair in _pairs(bench) for column in bench.columns(*pair) for part in _parts(bench, pair, column)]
    return probes + sorted(chains, key=lambda part: (part[0].column.threat != "clean", part[0].shard))


def _is_clean(part: pool.Chain) -> bool:
    return isinstance(part[0], tasks.Attack) and part[0].column.threat == "clean"


def _parts(bench: Bench, pair: tuple[str, str], column: Column) -> list[list[tasks.Attack]]:
    """The attacks of a column, a chain for each shard."""
    shards = range(-(-column.num_images // bench.config.shard_size))
    places = range(max(1, len(column.steps)))
    return [[tasks.Attack(*pair, column, place, shard) for place in places] for shard in shards]


def _merge(bench: Bench, identity: Mapping[str, Any]) -> Result:
    """Rows in the order of the table, the sanity checks, and what it all took; the parts are no longer needed.

    `forward_passes` counts every image that went forward through a model under attack, `thread_seconds` the time of
    one thread: the oblivious images, the batteries, and every unit. Oblivious images that lay in the cache count as
    what they took when they were made, for that is what the figures cost; a set of which it is not known (made
    before it was kept) counts nothing and has null under `attacked_images_cost`.
    """
    crafting = _crafting(bench)
    tables, cost = [], sum((took for took in crafting.values() if took), rows.Cost())
    reports: list[dict[str, Any]] = []
    flagged: list[dict[str, str]] = []
    for name, spec in _pairs(bench):
        pair_tables = []
        for column in bench.columns(name, spec):
            by_shard = _parts(bench, (name, spec), column)
            for task in (shard[place] for place in range(len(by_shard[0])) for shard in by_shard):
                table, part_cost = rows.decode_part(tasks.paths(bench, task)[0].read_bytes())
                pair_tables.append(table)
                cost += part_cost
        pair_table = pa.concat_tables(pair_tables)
        tables.append(pair_table)
        probed = tasks.read_probe(bench, tasks.Probe(name, spec))
        cost += probed.cost
        across = pair_checks(bench, name, pair_table, probed.at_eps_zero)
        checks = [*probed.checks, *(check.to_dict() for check in across)]
        pair = {"purifier": name, "classifier": bench.classifier(spec).name}
        reports.append({**pair, "checks": checks})
        found = [*probed.flags, *(flag.to_dict() for flag in pair_flags(pair_table))]
        flagged += [{**pair, "flag": flag["name"], "detail": flag["detail"]} for flag in found]
    values = {
        "name": "maep evaluation",
        **identity,
        "attacked_images": {label: attacked.folder.name for label, attacked in _labelled_sets(bench)},
        "attacked_images_cost": {
            label: took and {"forward_passes": took.forward_passes, "thread_seconds": round(took.seconds, 1)}
            for label, took in crafting.items()
        },
        "flags": flagged,
        "forward_passes": cost.forward_passes,
        "thread_seconds": round(cost.seconds, 1),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "workers": bench.config.num_workers},
        "versions": {package: version(package) for package in ("maep", "torch", "numpy", "pillow")},
    }
    result = summary.write(bench.setup.output, pa.concat_tables(tables), values, reports)
    shutil.rmtree(bench.setup.output / "parts", ignore_errors=True)
    return result


def _labelled_sets(bench: Bench) -> list[tuple[str, AttackedSet]]:
    names = {spec: bench.classifier(spec).name for spec in bench.config.classifiers}
    return [
        (f"{names[source.classifier]} {step.label(names)}", bench.attacked_set(source, step, count))
        for source, step, count in _sources(bench)
    ]


def _crafting(bench: Bench) -> dict[str, rows.Cost | None]:
    """What each set of attacked images took when it was made, None where that is not known."""
    found = {label: attacked.cost() for label, attacked in _labelled_sets(bench)}
    return {label: rows.Cost(took.forward_passes, took.seconds) if took else None for label, took in found.items()}


def _effort(step: Step) -> int:
    return step.config.effort * step.config.num_targets


class _Clock:
    """Progress by the attack steps that are done and to do."""

    def __init__(self, bench: Bench, every: Sequence[tasks.Task], report: Callable[[Progress], None]) -> None:
        self.bench, self.report = bench, report
        self.total = len(every)
        open_tasks = [task for task in every if not tasks.is_done(bench, task)]
        self.done = self.total - len(open_tasks)
        self.steps_to_do = sum(self._steps(task) for task in open_tasks)
        self.steps_done = 0
        self.start = time.monotonic()

    def _steps(self, task: tasks.Task) -> int:
        """Forward and backward passes of an image, by and large: cascades leave few to their dear attacks."""
        match task:
            case tasks.Probe():
                return 20
            case tasks.Craft():
                return 2 * _effort(task.step)
            case tasks.Attack():
                through = task.step is not None and task.step.source is None
                later = task.column.cascade and task.place > 0
                return 1 + (_effort(task.step) * task.column.eot // (4 if later else 1) if through and task.step else 0)

    def tick(self, task: tasks.Task) -> None:
        """One more task is done."""
        self.done += 1
        self.steps_done += self._steps(task)
        seconds = time.monotonic() - self.start
        eta = seconds * (self.steps_to_do - self.steps_done) / self.steps_done if self.steps_done else None
        self.report(Progress(self.done, self.total, task.label, seconds, eta))
