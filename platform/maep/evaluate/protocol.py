"""The protocol: every defence on every classifier in every threat model, in shards, resumable, and checked.

A killed evaluation goes on where it was when the same call is made again: each finished unit left its rows. The
figures depend neither on the number of workers nor on how often it was interrupted.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maep import storage
from maep.artifact import Artifact
from maep.data import adversarial
from maep.errors import ConfigError, UserError
from maep.evaluate import pool, results, rows, sanity, units
from maep.evaluate.bench import Bench, Setup, check
from maep.evaluate.config import NORM, EvaluateConfig, Threat, deciding, oblivious_attacks
from maep.evaluate.results import Result

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
    what cannot be evaluated; nothing that was there is overwritten. With `num_workers` > 1 the caller's main module
    must be importable (multiprocessing's spawn).
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
        if (setup.output / results.RESULT).is_file():
            return results.read(setup.output)
        crafts, rest = _crafts(bench), _rest(bench)
        clock = _Clock(bench, [*crafts, *rest], progress)
        with pool.Pool(bench, setup.config.num_workers) as workers:
            workers.run([task for task in crafts if not units.is_done(bench, task)], clock.tick)
            _finish_attacked(bench)
            workers.run([task for task in rest if not units.is_done(bench, task)], clock.tick)
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
        "norm": NORM,
        "seed": bench.config.seed,
        "purifiers": {name: bench.defence(name).sha256 for name in bench.setup.names},
        "baselines": list(bench.config.baselines),
        "classifiers": {classifier.name: classifier.sha256 for classifier in classifiers},
        "config": deciding(bench.config),
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


def _crafts(bench: Bench) -> list[units.Task]:
    tasks: list[units.Task] = []
    for spec in bench.config.classifiers:
        for config in oblivious_attacks(bench.config):
            count = adversarial.num_shards(bench.recipe(spec, config))
            tasks += [units.Craft(spec, config, shard) for shard in range(count)]
    return tasks


def _finish_attacked(bench: Bench) -> None:
    for spec in bench.config.classifiers:
        for config in oblivious_attacks(bench.config):
            folder = bench.attacked_folder(spec, config)
            if not adversarial.is_finished(folder):
                adversarial.finish(folder, bench.recipe(spec, config))


def _rest(bench: Bench) -> list[units.Task]:
    """Shard by shard over all defences, so that the time to go is known early; no figure depends on the order."""
    pairs = [(name, spec) for spec in bench.config.classifiers for name in bench.setup.names]
    tasks: list[units.Task] = [units.Probe(*pair) for pair in pairs]
    everything = [unit for pair in pairs for unit in _units(bench, *pair)]
    return tasks + sorted(everything, key=lambda unit: unit.shard)


def _units(bench: Bench, name: str, spec: str) -> list[units.Unit]:
    """Every unit of one pair, in the order of the table."""
    config = bench.config
    total = len(bench.image_list)
    through: Threat = "adaptive" if bench.defence(name).differentiable else "bpda"
    plan: list[tuple[Threat, float, int]] = [("clean", 0.0, total), ("oblivious", config.oblivious_eps, total)]
    plan += [(through, eps, min(total, config.num_adaptive or total)) for eps in sorted(config.eps)]
    return [
        units.Unit(name, spec, threat, eps, shard)
        for threat, eps, count in plan
        for shard in range(-(-count // config.batch_size))
    ]


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
    for spec in bench.config.classifiers:
        for name in bench.setup.names:
            pair_tables = []
            for unit in _units(bench, name, spec):
                for config in units.attacks_of(bench.config, unit):
                    table, part_cost = rows.read_part(units.part_path(bench, unit, config))
                    pair_tables.append(table)
                    cost += part_cost
            tables += pair_tables
            probe = units.Probe(name, spec)
            probed = units.read_probe(bench, probe)
            cost += probed.cost
            pair_table, randomised = pa.concat_tables(pair_tables), bench.defence(name).randomised
            across = [
                sanity.eps_zero(probed.at_eps_zero, _clean_answers(pair_table), randomised),
                *_adaptive_checks(pair_table, bench.config.oblivious_eps, randomised),
            ]
            checks = [*probed.checks, *(check.to_dict() for check in across)]
            reports.append({"purifier": name, "classifier": bench.classifier(spec).name, "checks": checks})
    values = {
        "name": "maep evaluation",
        **identity,
        "attacked_images": {
            f"{bench.classifier(spec).name} {config.label}": bench.attacked_folder(spec, config).name
            for spec in bench.config.classifiers
            for config in oblivious_attacks(bench.config)
        },
        "attacked_images_cost": {
            label: took and {"forward_passes": took.forward_passes, "thread_seconds": round(took.seconds, 1)}
            for label, took in crafting.items()
        },
        "forward_passes": cost.forward_passes,
        "thread_seconds": round(cost.seconds, 1),
        "versions": {package: version(package) for package in ("maep", "torch", "numpy", "pillow")},
    }
    result = results.write(bench.setup.output, pa.concat_tables(tables), values, reports)
    shutil.rmtree(bench.setup.output / "parts", ignore_errors=True)
    return result


def _crafting(bench: Bench) -> dict[str, rows.Cost | None]:
    """What each set of oblivious images took when it was made, None where that is not known."""
    found: dict[str, rows.Cost | None] = {}
    for spec in bench.config.classifiers:
        for config in oblivious_attacks(bench.config):
            took = adversarial.cost(bench.attacked_folder(spec, config), bench.recipe(spec, config))
            label = f"{bench.classifier(spec).name} {config.label}"
            found[label] = rows.Cost(took.forward_passes, took.seconds) if took else None
    return found


def _clean_answers(table: pa.Table) -> dict[int, tuple[int, bool]]:
    clean = table.filter(pc.equal(table["threat"], "clean"))
    index, prediction, correct = (clean[name].to_pylist() for name in ("index", "prediction", "correct"))
    return dict(zip(index, zip(prediction, correct, strict=True), strict=True))


def _adaptive_checks(table: pa.Table, oblivious_eps: float, randomised: bool) -> list[sanity.Check]:
    """What the adaptive figures of one defence and classifier must be to each other and to the oblivious one."""
    figures = [f for f in results.summarise(table) if f.threat == "adaptive" and f.attack == results.WORST]
    checks = []
    if len(figures) > 1:
        checks.append(sanity.monotone({f.eps: f.accuracy for f in figures}, figures[0].num_images))
    wide = [figure for figure in figures if figure.eps >= oblivious_eps - 1e-9]
    if wide:  # the least budget that takes in the oblivious one: what is wider, monotone holds below it
        pair, eps = (wide[0].purifier, wide[0].classifier), min(figure.eps for figure in wide)
        adaptive = results.outcomes(table, *pair, "adaptive", eps)
        oblivious = results.outcomes(table, *pair, "oblivious", oblivious_eps)
        checks.append(sanity.within_oblivious(adaptive, oblivious, eps, randomised))
    return checks


class _Clock:
    """Progress by the attack steps that are done and to do."""

    def __init__(self, bench: Bench, tasks: Sequence[units.Task], report: Callable[[Progress], None]) -> None:
        self.bench, self.report = bench, report
        self.total = len(tasks)
        open_tasks = [task for task in tasks if not units.is_done(bench, task)]
        self.done = self.total - len(open_tasks)
        self.steps_to_do = sum(self._steps(task) for task in open_tasks)
        self.steps_done = 0
        self.start = time.monotonic()

    def _steps(self, task: units.Task) -> int:
        match task:
            case units.Craft():
                return 2 * task.attack.steps + 1
            case units.Probe():
                return 20
            case units.Unit():
                return sum(config.steps if config else 1 for config in units.attacks_of(self.bench.config, task))

    def tick(self, task: units.Task) -> None:
        """One more task is done."""
        self.done += 1
        self.steps_done += self._steps(task)
        seconds = time.monotonic() - self.start
        eta = seconds * (self.steps_to_do - self.steps_done) / self.steps_done if self.steps_done else None
        self.report(Progress(self.done, self.total, task.label, seconds, eta))
