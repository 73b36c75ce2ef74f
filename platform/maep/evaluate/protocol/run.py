"""Evaluate defences before classifiers in every threat model: in shards, resumable, and checked.

Repeat the same call to resume a killed evaluation: the files of finished tasks are kept. Figures depend neither on the
number of workers nor on interruptions.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import nn

from maep import config as configuration
from maep import storage
from maep.artifact import Artifact
from maep.errors import ConfigError, UserError
from maep.evaluate.attacked_sets import AttackedSet
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.cost import Cost
from maep.evaluate.protocol import pool
from maep.evaluate.protocol.context import Context, check
from maep.evaluate.protocol.presets import Column, ScheduledAttack, Source
from maep.evaluate.protocol.tasks import AttackShard, EvaluationTask, MeasureShard, SanityBattery
from maep.evaluate.results import rows, summary
from maep.evaluate.results.summary import Result
from maep.evaluate.trust.checks import pair_checks, pair_flags

__all__ = ["EvaluateConfig", "EvaluationProgress", "evaluate"]

IDENTITY = "evaluation.json"
_UNWRITABLE = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True)
class EvaluationProgress:
    """After each task: tasks `done` of `total`, the last task, and seconds elapsed and remaining."""

    done: int
    total: int
    label: str
    seconds: float
    eta_seconds: float | None


Report = Callable[[EvaluationProgress], None]


def evaluate(
    config: EvaluateConfig,
    purifiers: Mapping[str, str | Path | Artifact | nn.Module],
    output: str | Path,
    progress: Report | None = None,
) -> Result:
    """Evaluates `purifiers` (name -> artifact, its local folder, or a module) beside the baselines, into `output`.

    Raises ConfigError where `output` holds an evaluation of another configuration, and one-line UserErrors for what
    cannot be evaluated. It overwrites nothing in `output`.
    """
    sources = {name: _source(purifier) for name, purifier in purifiers.items()}
    _check_names(config, sources)
    context = Context(config, sources, Path(output))
    try:
        with pool.one_thread():
            return _evaluate(context, progress or (lambda _: None))
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise UserError(f"cannot write the evaluation to {error.filename or output}: {error.strerror}") from None


def _evaluate(context: Context, progress: Report) -> Result:
    check(context)
    identity = _identity(context)
    _claim(context.output, identity)
    if (context.output / summary.RESULT).is_file():
        return summary.read(context.output)
    sets, making, measuring = _stages(context)
    tasks = [task for stage in (making, *measuring) for chain in stage for task in chain]
    reporter = _Reporter(context, tasks, progress)
    with pool.pool(context) as run:
        run(making, reporter.finished)
        for attacked in sets:
            if not attacked.is_finished:
                attacked.finish()
        for stage in measuring:
            run(stage, reporter.finished)
    return _merge(context, identity)


def _source(purifier: str | Path | Artifact | nn.Module) -> str | nn.Module:
    if isinstance(purifier, nn.Module):
        return purifier
    return str(purifier.folder if isinstance(purifier, Artifact) else purifier)


def _check_names(config: EvaluateConfig, names: Collection[str]) -> None:
    for name in names:
        if name in config.baselines:
            raise ConfigError(f"purifier {name!r} has the name of a baseline: rename it")
        if not name:
            raise ConfigError("a purifier has an empty name: its rows could not be told apart")
    if not names and not config.baselines:
        raise ConfigError("nothing to evaluate: name a purifier or a baseline")


def _identity(context: Context) -> dict[str, Any]:
    """What decides the figures; an output folder holds the evaluation of exactly one identity."""
    classifiers = [context.classifier(spec) for spec in context.config.classifiers]
    deciding = configuration.deciding(context.config)
    return {
        "preset": context.config.preset,
        "dataset": context.image_list.dataset,
        "split": context.image_list.split,
        "image_list": context.image_list.name,
        "image_list_sha256": context.image_list.sha256,
        "num_images": len(context.image_list),
        "seed": context.config.seed,
        "purifiers": {name: context.defence(name).sha256 for name in context.names},
        "baselines": list(context.config.baselines),
        "classifiers": {classifier.name: classifier.sha256 for classifier in classifiers},
        "config": {key: value for key, value in deciding.items() if key != "classifiers"},
    }


def _claim(output: Path, identity: Mapping[str, Any]) -> None:
    path = output / IDENTITY
    text = json.dumps(identity, indent=2) + "\n"
    if path.is_file():
        wanted, found = json.loads(text), json.loads(path.read_text(encoding="utf-8"))
        if found != wanted:
            differing = [key for key in identity if found.get(key) != wanted[key]]
            raise ConfigError(
                f"{output} holds an evaluation of another configuration ({', '.join(differing[:3])} differ):"
                " give another output folder"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} is not empty and holds no evaluation: give another output folder")
    storage.write_bytes(path, text.encode())


def _pairs(context: Context) -> list[tuple[str, str]]:
    """Every (defence, classifier), in the order of the table."""
    return [(name, spec) for spec in context.config.classifiers for name in context.names]


def _sources(context: Context) -> list[tuple[Source, ScheduledAttack, int]]:
    """The sets of attacked images: attacked model, attack, number of images."""
    columns = (column for pair in _pairs(context) for column in context.columns(*pair))
    found = ((attack.source, attack, column.num_images) for column in columns for attack in column.attacks)
    return list(dict.fromkeys((source, attack, count) for source, attack, count in found if source is not None))


def _stages(context: Context) -> tuple[list[AttackedSet], list[pool.Chain], list[list[pool.Chain]]]:
    """The sets of attacked images, the tasks that make them, and two stages of tasks that measure.

    The first stage measures clean images, from which the cascades of the second start. The second goes shard by shard
    over all defences, so that the estimate of the remaining time is good early. No figure depends on the order.
    """
    making: list[pool.Chain] = []
    sets = []
    for source, attack, count in _sources(context):
        attacked = context.attacked_set(source, attack, count)
        sets.append(attacked)
        if not attacked.is_finished:
            making += [[AttackShard(source, attack, count, shard)] for shard in range(attacked.num_shards)]
    parts = [
        part for pair in _pairs(context) for column in context.columns(*pair) for part in _parts(context, pair, column)
    ]
    clean: list[pool.Chain] = [part for part in parts if part[0].column.threat == "clean"]
    attacks = [part for part in parts if part[0].column.threat != "clean"]
    batteries: list[pool.Chain] = [[SanityBattery(*pair)] for pair in _pairs(context)]
    return sets, making, [clean, batteries + sorted(attacks, key=lambda part: part[0].shard)]


def _parts(context: Context, pair: tuple[str, str], column: Column) -> list[list[MeasureShard]]:
    """The tasks of a column, one chain per shard."""
    shards = range(-(-column.num_images // context.config.shard_size))
    places = range(max(1, len(column.attacks)))
    return [[MeasureShard(*pair, column, place, shard) for place in places] for shard in shards]


def _merge(context: Context, identity: Mapping[str, Any]) -> Result:
    """Writes the result: rows in the order of the table, findings, and cost. Then deletes the parts.

    `forward_passes` and `thread_seconds` count the attacked images, the batteries and every part. Attacked images read
    from the cache count with their original cost; where that was not kept (sets of earlier versions) it is null under
    `attacked_images_cost` and counts nothing.
    """
    names = context.classifier_names
    sets = {
        f"{names[source.classifier]} {attack.label(names)}": context.attacked_set(source, attack, count)
        for source, attack, count in _sources(context)
    }
    set_costs = {label: attacked.cost() for label, attacked in sets.items()}
    tables, cost = [], sum(filter(None, set_costs.values()), Cost())
    reports: list[dict[str, Any]] = []
    flagged: list[dict[str, str]] = []
    for name, spec in _pairs(context):
        pair_tables = []
        for column in context.columns(name, spec):
            by_shard = _parts(context, (name, spec), column)
            for task in (shard[place] for place in range(len(by_shard[0])) for shard in by_shard):
                table, part_cost = rows.decode_part(task.path(context).read_bytes())
                pair_tables.append(table)
                cost += part_cost
        pair_table = pa.concat_tables(pair_tables)
        tables.append(pair_table)
        at_eps_zero, checks, flags, battery_cost = SanityBattery(name, spec).result(context)
        cost += battery_cost
        randomised = context.defence(name).traits.randomised
        across = pair_checks(pair_table, at_eps_zero, context.config.oblivious_eps, randomised)
        pair = {"purifier": name, "classifier": names[spec]}
        reports.append({**pair, "checks": [*checks, *map(asdict, across)]})
        found = [*flags, *map(asdict, pair_flags(pair_table))]
        flagged += [{**pair, "flag": flag["name"], "detail": flag["detail"]} for flag in found]
    values = {
        "name": "maep evaluation",
        **identity,
        "attacked_images": {label: attacked.folder.name for label, attacked in sets.items()},
        "attacked_images_cost": {label: took and _cost(took) for label, took in set_costs.items()},
        "flags": flagged,
        **_cost(cost),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "workers": context.config.num_workers},
        "versions": {package: version(package) for package in ("maep", "torch", "numpy", "pillow")},
    }
    result = summary.write(context.output, pa.concat_tables(tables), values, reports)
    shutil.rmtree(context.output / "parts", ignore_errors=True)
    return result


def _cost(cost: Cost) -> dict[str, float]:
    return {"forward_passes": cost.forward_passes, "thread_seconds": round(cost.seconds, 1)}


class _Reporter:
    """Reports progress; estimates the remaining time from the effort of the tasks left."""

    def __init__(self, context: Context, tasks: Sequence[EvaluationTask], report: Report) -> None:
        left = [task for task in tasks if not task.is_done(context)]
        self.report, self.total, self.done = report, len(tasks), len(tasks) - len(left)
        self.effort_left, self.effort_done = sum(task.effort() for task in left), 0
        self.start = time.monotonic()

    def finished(self, task: EvaluationTask) -> None:
        """Reports one more finished task."""
        self.done += 1
        self.effort_done += task.effort()
        self.effort_left -= task.effort()
        seconds = time.monotonic() - self.start
        eta = seconds * self.effort_left / self.effort_done if self.effort_done else None
        self.report(EvaluationProgress(self.done, self.total, task.label(), seconds, eta))
