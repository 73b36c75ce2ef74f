"""The tasks of an evaluation. A task touches no file itself, so that any worker can run it.

The driver passes a task its `inputs` and writes the files that it returns; a task whose file exists is done. No figure
depends on which worker runs a task.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from maep import storage
from maep.attacks.config import AttackConfig
from maep.data.image_set import to_float
from maep.errors import ConfigError
from maep.evaluate.config import Threat
from maep.evaluate.cost import Cost, CostMeter
from maep.evaluate.measure import Measurement, measure
from maep.evaluate.protocol.context import Context
from maep.evaluate.protocol.presets import Column, ScheduledAttack, Source
from maep.evaluate.results import rows
from maep.evaluate.trust import sanity
from maep.evaluate.trust.flags import flags


class Inputs(NamedTuple):
    """What a task is given from the files of earlier tasks."""

    previous: bytes | None = None
    """The part of the attack before in a cascade."""
    attacked: NDArray[np.uint8] | None = None
    """uint8 [B, H, W, 3]: images of a kept set."""


class EvaluationTask(ABC):
    """One unit of work, finished or repeated as a whole."""

    @abstractmethod
    def path(self, context: Context) -> Path:
        """The file that marks the task as done."""

    @abstractmethod
    def files(self, context: Context, inputs: Inputs) -> dict[Path, bytes]:
        """Does the work. Returns the files to write, in this order."""

    @abstractmethod
    def label(self) -> str:
        """A description for progress."""

    @abstractmethod
    def effort(self) -> int:
        """Estimated forward and backward passes per image."""

    def inputs(self, context: Context) -> Inputs:
        """What the task needs from the files of earlier tasks."""
        del context
        return Inputs()

    def is_done(self, context: Context) -> bool:
        """Whether the task's file exists."""
        return self.path(context).is_file()

    def run(self, context: Context, inputs: Inputs) -> dict[Path, bytes]:
        """`files`, with this task's random draws. Raises ConfigError where the model returns NaN."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.draw_seed(context))
            try:
                return self.files(context, inputs)
            except FloatingPointError as error:
                raise ConfigError(f"{self.label()}: {error}: its weights are damaged or it divides by zero") from None

    def draw_seed(self, context: Context) -> int:
        """The seed of a randomised purifier's draws: the same in every process, different for each task."""
        words = (context.config.seed, *self.path(context).parts[-2:])
        return int(storage.sha256(repr(words).encode())[:15], 16)


@dataclass(frozen=True)
class AttackShard(EvaluationTask):
    """Makes one shard of a kept set of attacked images."""

    source: Source
    attack: ScheduledAttack
    num_images: int
    shard: int

    def path(self, context: Context) -> Path:
        """The shard's images."""
        return context.attacked_set(self.source, self.attack, self.num_images).shard_path(self.shard)

    def files(self, context: Context, inputs: Inputs) -> dict[Path, bytes]:
        """The shard's cost and images."""
        del inputs
        attacked = context.attacked_set(self.source, self.attack, self.num_images)
        return attacked.make(context.source_model(self.source), self.shard)

    def label(self) -> str:
        """The attack and its model."""
        through = f"{self.source.purifier} in front of " if self.source.purifier else ""
        return f"attacking {through}{self.source.classifier} with {self.attack.config.label}"

    def effort(self) -> int:
        """Forward and backward pass of each step."""
        return 2 * self.attack.num_passes


@dataclass(frozen=True)
class MeasureShard(EvaluationTask):
    """Measures one shard of a column's images under attack number `place`; without attacks, clean."""

    purifier: str
    classifier: str
    column: Column
    place: int
    shard: int

    @property
    def attack(self) -> ScheduledAttack | None:
        """The attack; None for clean images."""
        return self.column.attacks[self.place] if self.column.attacks else None

    def path(self, context: Context) -> Path:
        """The part's rows."""
        column, names = self.column, context.classifier_names
        label = self.attack.label(names) if self.attack else "clean"
        words = (self.purifier, names[self.classifier], column.threat, column.norm, label, column.eps, column.eot)
        return context.part((*words, self.shard), "parquet")

    def inputs(self, context: Context) -> Inputs:
        """The images of a kept set, and the part of the attack before in a cascade."""
        attack, column, place = self.attack, self.column, self.place - 1
        if attack is None:
            return Inputs()
        attacked = None
        if attack.source is not None:
            kept = context.attacked_set(attack.source, attack, column.num_images)
            where = self._positions(context)
            attacked = context.attacked_images(kept)[where.start : where.stop]
        if not column.cascade or context.defence(self.purifier).traits.randomised:
            return Inputs(attacked=attacked)
        if not self.place:  # the first attack follows the clean images
            column, place = context.columns(self.purifier, self.classifier)[0], 0
        previous = MeasureShard(self.purifier, self.classifier, column, place, self.shard)
        return Inputs(previous.path(context).read_bytes(), attacked)

    def files(self, context: Context, inputs: Inputs) -> dict[Path, bytes]:
        """The part's rows, with their cost."""
        batch, attack, column = context.batch(self._positions(context)), self.attack, self.column
        defended = context.defended(self.purifier, self.classifier, column.threat, column.eot)
        classifier, seed = context.classifier(self.classifier), context.config.seed + (attack.seed if attack else 0)
        attacked: Tensor | AttackConfig | None = attack.config if attack else None
        previous = None
        if inputs.previous is not None:  # clean rows may cover more images than the column
            previous = _measurement(rows.decode_part(inputs.previous)[0].slice(0, len(batch.labels)))
        if inputs.attacked is not None:  # copied, because PyTorch warns about the read-only array of a worker
            attacked = to_float(torch.tensor(inputs.attacked), torch.channels_last)
        meter, draw_seed, size = CostMeter(), self.draw_seed(context), context.config.batch_size
        with meter.on(defended.model):
            found = measure(
                defended, batch, attacked, column.threat, seed=seed, draw_seed=draw_seed, batch_size=size,
                previous=previous,
            )  # fmt: skip
        constants = {
            "dataset": context.image_list.dataset,
            "split": context.image_list.split,
            "image_list": context.image_list.name,
            "purifier": self.purifier,
            "purifier_sha256": context.defence(self.purifier).sha256,
            "classifier": classifier.name,
            "classifier_sha256": classifier.sha256,
            "threat": column.threat,
            "norm": column.norm,
            "attack": attack.label(context.classifier_names) if attack else "clean",
            "eps": column.eps,
            "steps": attack.config.effort if attack else 0,
            "eot": column.eot,
            "seed": seed,
            "num_draws": found.num_draws,
        }
        columns = {name: getattr(found, name).numpy() for name in Measurement.COLUMNS} | {
            "index": batch.indices.numpy(),
            "label": batch.labels.numpy(),
            "correct": found.right(batch.labels).numpy(),
        }
        return {self.path(context): rows.encode_part(rows.make(constants, columns), meter.cost)}

    def label(self) -> str:
        """Defence, classifier, threat model and attack."""
        attack = f", {self.attack.config.label}" if self.attack else ""
        return f"{self.purifier} in front of {self.classifier}: {self.column.threat}{attack}"

    def effort(self) -> int:
        """One pass to judge, plus those of the attack."""
        if self.attack is None or self.attack.source is not None:
            return 1
        share = 4 if self.column.cascade and self.place else 1  # few images are left for the later attacks of a cascade
        return 1 + self.attack.num_passes * self.column.eot // share

    def _positions(self, context: Context) -> range:
        size = context.config.shard_size
        return range(self.shard * size, min((self.shard + 1) * size, self.column.num_images))


@dataclass(frozen=True)
class SanityBattery(EvaluationTask):
    """Runs the sanity battery of one defence and classifier."""

    purifier: str
    classifier: str

    def path(self, context: Context) -> Path:
        """The findings."""
        return context.part(("battery", self.purifier, context.classifier_names[self.classifier]), "json")

    def files(self, context: Context, inputs: Inputs) -> dict[Path, bytes]:
        """The findings, as JSON."""
        del inputs
        threat: Threat = "adaptive" if context.defence(self.purifier).traits.differentiable else "bpda"
        defended = context.defended(self.purifier, self.classifier, threat)
        batch = context.batch(range(min(context.config.num_probes, len(context.image_list))))
        seed, meter = context.config.seed, CostMeter()
        with meter.on(defended.model):
            found: dict[str, Any] = {
                "flags": [asdict(flag) for flag in flags(defended, batch, seed)],
                "checks": [
                    asdict(check) for check in sanity.battery(defended, batch, threat, max(context.config.eps), seed)
                ],
                # after the battery, so that a model changed by an attack is found
                "at_eps_zero": list(sanity.at_eps_zero(defended, batch, seed).items()),
            }
        return {self.path(context): json.dumps({**found, "cost": asdict(meter.cost)}, indent=2).encode()}

    def result(self, context: Context) -> tuple[sanity.Predictions, list[Any], list[Any], Cost]:
        """What the finished task found: predictions at eps 0, checks and flags as in result.json, and cost."""
        found = json.loads(self.path(context).read_bytes())
        predictions = {index: (prediction, right) for index, (prediction, right) in found["at_eps_zero"]}
        return predictions, found["checks"], found["flags"], Cost(**found["cost"])

    def label(self) -> str:
        """Defence and classifier."""
        return f"{self.purifier} in front of {self.classifier}: sanity battery"

    def effort(self) -> int:
        """About that of PGD-20."""
        return 20


def _measurement(table: pa.Table) -> Measurement:
    """The measurement that rows record."""
    columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in Measurement.COLUMNS}
    return Measurement(**columns, num_draws=table["num_draws"][0].as_py())
