"""The tasks of an evaluation, and how one is done: files out of what is in memory and what the driver hands over.

A task reads and writes no file itself, so that it runs wherever there is a worker; the driver writes what it returns,
each file whole or not at all. Which worker does a task changes no figure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from maep import storage
from maep.attacks.config import AttackConfig
from maep.data.image_set import to_float
from maep.errors import ConfigError
from maep.evaluate import attacked_sets
from maep.evaluate.config import Threat
from maep.evaluate.measure import Batch, DefendedModel, Outcome, measure
from maep.evaluate.protocol.context import Bench, fast
from maep.evaluate.protocol.presets import Column, Source, Step
from maep.evaluate.results import rows
from maep.evaluate.trust import sanity
from maep.evaluate.trust.flags import flags


@dataclass(frozen=True)
class Craft:
    """One shard of a set of attacked images."""

    source: Source
    step: Step
    num_images: int
    shard: int

    @property
    def label(self) -> str:
        """For progress."""
        through = f"{self.source.purifier} before " if self.source.purifier else ""
        return f"attacking {through}{self.source.classifier} with {self.step.config.label}"


@dataclass(frozen=True)
class Attack:
    """One attack of a column (`place` in its steps; without steps, no attack) on one shard of its images."""

    purifier: str
    classifier: str
    column: Column
    place: int
    shard: int

    @property
    def step(self) -> Step | None:
        """The attack; None where the images are taken as they are."""
        return self.column.steps[self.place] if self.column.steps else None

    @property
    def label(self) -> str:
        """For progress."""
        made = f", {self.step.config.label}" if self.step else ""
        return f"{self.purifier} before {self.classifier}: {self.column.threat}{made}"


@dataclass(frozen=True)
class Probe:
    """The sanity battery of one defence and classifier."""

    purifier: str
    classifier: str

    @property
    def label(self) -> str:
        """For progress."""
        return f"{self.purifier} before {self.classifier}: sanity battery"


Task = Craft | Attack | Probe


@dataclass(frozen=True)
class Given:
    """What a task needs that lies in files, which only the driver reads."""

    before: bytes | None = None
    """The part that the attack before this one of the cascade has left."""
    attacked: NDArray[np.uint8] | None = None
    """uint8 [B, H, W, 3]: the task's share of a kept set."""


@dataclass(frozen=True)
class Probed:
    """What a probe found: the checks of the battery, the answers at eps 0, flags, and what it all took."""

    checks: list[dict[str, Any]]
    at_eps_zero: dict[int, tuple[int, bool]]
    flags: list[dict[str, str]] = field(default_factory=list)
    cost: rows.Cost = field(default_factory=rows.Cost)


def paths(bench: Bench, task: Task) -> tuple[Path, ...]:
    """The files that a finished task has left; `is_done` where the last of them is there."""
    match task:
        case Craft():
            return (bench.attacked_set(task.source, task.step, task.num_images).shard_path(task.shard),)
        case Attack():
            column = task.column
            label = task.step.label(_names(bench)) if task.step else "clean"
            words = (task.purifier, bench.classifier(task.classifier).name, column.threat, column.norm, label,
                     column.eps, column.eot, task.shard)  # fmt: skip
            return (bench.setup.output / "parts" / f"{rows.part_name(words)}.parquet",)
        case Probe():
            name = rows.part_name(("sanity", task.purifier, bench.classifier(task.classifier).name))
            return (bench.setup.output / "parts" / f"{name}.json",)


def is_done(bench: Bench, task: Task) -> bool:
    """Whether a task has left all it should."""
    return paths(bench, task)[-1].is_file()


def given(bench: Bench, task: Task) -> Given:
    """What the driver hands to a task, out of files that earlier tasks have left."""
    if not isinstance(task, Attack) or task.step is None:
        return Given()
    if task.step.source is not None:
        kept = bench.attacked_set(task.step.source, task.step, task.column.num_images)
        where = positions(bench, task)
        return Given(attacked=bench.kept(kept)[where.start : where.stop])
    if task.column.cascade and not bench.defence(task.purifier).traits.randomised:
        earlier = (
            Attack(task.purifier, task.classifier, task.column, task.place - 1, task.shard)
            if task.place
            else Attack(task.purifier, task.classifier, bench.columns(task.purifier, task.classifier)[0], 0, task.shard)
        )
        return Given(before=paths(bench, earlier)[0].read_bytes())
    return Given()


def do(bench: Bench, task: Task, inputs: Given) -> dict[Path, bytes]:
    """Does one task and returns its files, to be written in this order."""
    with torch.random.fork_rng(devices=[]):
        try:
            match task:
                case Craft():
                    model = bench.source_model(task.source)
                    torch.manual_seed(_seed(bench, task))
                    return bench.attacked_set(task.source, task.step, task.num_images).make(model, task.shard)
                case Attack():
                    return {paths(bench, task)[0]: _attack(bench, task, inputs)}
                case Probe():
                    return {paths(bench, task)[0]: _probe(bench, task)}
        except FloatingPointError as error:
            raise ConfigError(f"{task.label}: {error}: its weights are damaged or it divides by zero") from None


def positions(bench: Bench, task: Attack) -> range:
    """Places in the image list that this task's shard covers."""
    size = bench.config.shard_size
    return range(task.shard * size, min((task.shard + 1) * size, task.column.num_images))


def read_probe(bench: Bench, probe: Probe) -> Probed:
    """What a finished probe has left."""
    found = json.loads(paths(bench, probe)[0].read_text(encoding="utf-8"))
    answers = {index: (prediction, right) for index, prediction, right in found["at_eps_zero"]}
    return Probed(found["checks"], answers, found["flags"], rows.Cost(*found["cost"]))


def _probe(bench: Bench, probe: Probe) -> bytes:
    traits = bench.defence(probe.purifier).traits
    threat: Threat = "adaptive" if traits.differentiable else "bpda"
    model = bench.defended(probe.purifier, probe.classifier, threat)
    where = range(min(bench.config.num_probes, len(bench.image_list)))
    images, labels = bench.batch(where)
    indices, seed = bench.indices(where), bench.config.seed
    passes = bench.config.eot if traits.randomised else None
    meter = attacked_sets.Meter()
    with meter.on(model):
        warnings = flags(model, images, labels, passes, seed)
        checks = sanity.battery(model, images, labels, indices, threat, max(bench.config.eps), seed, passes)
        # After the battery, so that a model which an attack has changed is seen.
        answers = sanity.at_eps_zero(model, images, labels, indices, seed, passes)
    found = {
        "checks": [check.to_dict() for check in checks],
        "at_eps_zero": [(index, *answer) for index, answer in answers.items()],
        "flags": [flag.to_dict() for flag in warnings],
        "cost": [meter.forward_passes, meter.seconds],
    }
    return json.dumps(found, indent=2).encode()


def _attack(bench: Bench, task: Attack, inputs: Given) -> bytes:
    where = positions(bench, task)
    batch = Batch(*bench.batch(where), bench.indices(where))
    traits, column, step = bench.defence(task.purifier).traits, task.column, task.step
    model = bench.defended(task.purifier, task.classifier, column.threat)
    draws = bench.config.draws if column.threat != "fixed-mask" else 1
    defended = DefendedModel(model, traits.randomised, column.eot, draws)
    attacked: Tensor | AttackConfig | None = step.config if step else None
    if inputs.attacked is not None:
        attacked = fast(to_float(torch.tensor(inputs.attacked)))  # a copy: a worker may only read what it shares
    meter = attacked_sets.Meter()
    with meter.on(model):
        outcome = measure(
            defended,
            batch,
            attacked,
            column.threat,
            seed=bench.config.seed + (step.seed if step else 0),
            draw_seed=_seed(bench, task),
            batch_size=bench.config.batch_size,
            previous=_previous(inputs, len(where)),
        )
    cost = rows.Cost(meter.forward_passes, meter.seconds)
    return rows.encode_part(_table(bench, task, where, batch.labels, outcome), cost)


def _previous(inputs: Given, count: int) -> Outcome | None:
    """The outcome of the attack before; clean rows may be of more images than the column."""
    return None if inputs.before is None else _outcome(rows.decode_part(inputs.before)[0].slice(0, count))


def _outcome(table: pa.Table) -> Outcome:
    """The outcome that these rows keep."""
    columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in Outcome.COLUMNS}
    return Outcome(**columns, num_draws=table["num_draws"][0].as_py())


def _seed(bench: Bench, task: Task) -> int:
    """What a randomised purifier draws from: its own for each task, whichever process does it."""
    words = (bench.config.seed, *paths(bench, task)[-1].parts[-2:])
    return int(storage.sha256(repr(words).encode())[:15], 16)


def _names(bench: Bench) -> dict[str, str]:
    return {spec: bench.classifier(spec).name for spec in bench.config.classifiers}


def _table(bench: Bench, task: Attack, where: range, labels: Tensor, outcome: Outcome) -> pa.Table:
    defence, classifier = bench.defence(task.purifier), bench.classifier(task.classifier)
    step, column = task.step, task.column
    constants: Mapping[str, Any] = {
        "dataset": bench.image_list.dataset,
        "split": bench.image_list.split,
        "image_list": bench.image_list.name,
        "purifier": task.purifier,
        "purifier_sha256": defence.sha256,
        "classifier": classifier.name,
        "classifier_sha256": classifier.sha256,
        "threat": column.threat,
        "norm": column.norm,
        "attack": step.label(_names(bench)) if step else "clean",
        "eps": column.eps,
        "steps": step.config.effort if step else 0,
        "eot": column.eot,
        "seed": bench.config.seed + (step.seed if step else 0),
        "num_draws": outcome.num_draws,
    }
    columns = {
        "index": bench.image_set.indices[where.start : where.stop],
        "label": labels.numpy(),
        "prediction": outcome.prediction.numpy(),
        "correct": (outcome.prediction == labels).numpy(),
        "loss": outcome.loss.numpy(),
        "num_right": outcome.num_right.numpy(),
        "change": outcome.change.numpy(),
        "inherited": outcome.inherited.numpy(),
    }
    return rows.make(constants, columns)
