"""The tasks of an evaluation. A task reads and writes no file itself, so that any worker can run it.

The driver hands a task its `inputs` and writes the file, or files, that it returns; a task whose file exists is done.
Which worker runs a task changes no figure.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from maep.evaluate.config import Threat
from maep.evaluate.cost import Cost, CostMeter
from maep.evaluate.measure import Outcome, measure
from maep.evaluate.protocol.context import Context
from maep.evaluate.protocol.presets import Column, ScheduledAttack, Source
from maep.evaluate.results import rows
from maep.evaluate.trust import sanity
from maep.evaluate.trust.flags import flags


@dataclass(frozen=True)
class Inputs:
    """What a task needs from files."""

    previous: bytes | None = None
    """The part left by the attack before this one in a cascade."""
    attacked: NDArray[np.uint8] | None = None
    """uint8 [B, H, W, 3]: the task's images of a kept set."""


class Task(ABC):
    """One unit of work, finished or repeated as a whole."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What the task does, for progress."""

    @abstractmethod
    def path(self, context: Context) -> Path:
        """The file that the finished task leaves."""

    @abstractmethod
    def effort(self) -> int:
        """Estimated forward and backward passes per image."""

    def inputs(self, context: Context) -> Inputs:
        """What the driver hands to the task, from files of earlier tasks."""
        del context
        return Inputs()

    @abstractmethod
    def files(self, context: Context, inputs: Inputs) -> dict[Path, bytes]:
        """Runs the task; the files to write, in this order."""

    def is_done(self, context: Context) -> bool:
        """Whether the task has left its file."""
        return self.path(context).is_file()

    def run(self, context: Context, inputs: Inputs) -> dict[Path, bytes]:
        """`files`, with the random draws of this task. Raises ConfigError where the model returns NaN."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.draw_seed(context))
            try:
                return self.files(context, inputs)
            except FloatingPointError as error:
                raise ConfigError(f"{self.label}: {error}: its weights are damaged or it divides by zero") from None

    def draw_seed(self, context: Context) -> int:
        """The seed of a randomised purifier's draws: the same in every process, another for each task."""
        words = (context.config.seed, *self.path(context).parts[-2:])
        return int(storage.sha256(repr(words).encode())[:15], 16)


@dataclass(frozen=True)
class AttackShard(Task):
    """Makes one shard of a kept set of attacked images."""

    source: Source
    attack: ScheduledAttack
    num_images: int
    shard: int

    @property
    def label(self) -> str:
        """For progress."""
        through = f"{self.source.purifier} before " if self.source.purifier else ""
        return f"attacking {through}{self.source.classifier} with {self.attack.config.label}"

    def path(self, context: Context) -> Path:
        """The shard's images."""
        return context.attacked_set(self.source, self.attack, self.num_images).shard_path(self.shard)

    def effort(self) -> int:
        """A forward and a backward pass for each step."""
        return 2 * self.attack.config.effort * self.attack.config.num_targets

    def files(self, context: Context, inputs: Inputs) -> dict[Path, bytes]:
        """The shard's cost and images."""
        del inputs
        attacked = context.attacked_set(self.source, self.attack, self.num_images)
        return attacked.make(context.source_model(self.source), self.shard)


@dataclass(frozen=True)
class MeasureShard(Task):
    """Measures one shard of a column's images under one of its attacks (number `place`); without attacks, clean."""

    purifier: str
    classifier: str
    column: Column
    place: int
    shard: int

    @property
    def attack(self) -> ScheduledAttack | None:
        """The attack; None for clean images."""
        return self.column.attacks[self.place] if self.column.attacks else None

    @property
    def label(self) -> str:
        """For progress."""
        attack = f", {self.attack.config.label}" if self.attack else ""
        return f"{self.purifier} before {self.classifier}: {self.column.threat}{attack}"

    def path(self, context: Context) -> Path:
        """The rows of this part."""
        column, names = self.column, context.classifier_names
        label = self.attack.label(names) if self.attack else "clean"
        words = (self.purifier, names[self.classifier], column.threat, column.norm, label, column.eps, column.eot,
                 self.shard)  # fmt: skip
        return context.setup.output / "parts" / f"{rows.part_name(words)}.parquet"

    def effort(self) -> int:
        """One pass, and those of the attack; a cascade leaves few images to its later attacks."""
        if self.attack is None or self.attack.source is not None:
            return 1
        share = 4 if self.column.cascade and self.place else 1
        return 1 + self.attack.config.effort * self.attack.config.num_targets * self.column.eot // share

    def inputs(self, context: Context) -> Inputs:
        """Kept attacked images, or the part of the attack before in a cascade (the first follows the clean part)."""
        if self.attack is None:
            return Inputs()
        if self.attack.source is not None:
            kept = context.attacked_set(self.attack.source, self.attack, self.column.num_images)
            where = self.positions(context)
            return Inputs(attacked=context.attacked_images(kept)[where.start : where.stop])
        if not self.column.cascade or context.defence(self.purifier).traits.randomised:
            return Inputs()
        column, place = self.column, self.place - 1
        if not self.place:
            column, place = context.columns(self.purifier, self.classifier)[0], 0
        previous = MeasureShard(self.purifier, self.classifier, column, place, self.shard)
        return Inputs(previous=previous.path(context).read_bytes())

    def files(self, context: Context, inputs: Inputs) -> dict[Path, bytes]:
        """The rows of this part, with their cost."""
        batch, attack, column = context.batch(self.positions(context)), self.attack, self.column
        defended = context.defended(self.purifier, self.classifier, column.threat, column.eot)
        attacked: Tensor | AttackConfig | None = attack.config if attack else None
        if inputs.attacked is not None:  # copied, because PyTorch warns about the read-only array of a worker
            attacked = to_float(torch.tensor(inputs.attacked), torch.channels_last)
        previous = None
        if inputs.previous is not None:  # clean rows may cover more images than the column
            previous = _outcome(rows.decode_part(inputs.previous)[0].slice(0, len(batch.labels)))
        meter = CostMeter()
        with meter.on(defended.model):
            outcome = measure(
                defended,
                batch,
                attacked,
                column.threat,
                seed=context.config.seed + (attack.seed if attack else 0),
                draw_seed=self.draw_seed(context),
                batch_size=context.config.batch_size,
                previous=previous,
            )
        constants = {**self._constants(context), "num_draws": outcome.num_draws}
        columns = {
            "index": batch.indices.numpy(),
            "label": batch.labels.numpy(),
            "correct": (outcome.prediction == batch.labels).numpy(),
            **{name: getattr(outcome, name).numpy() for name in Outcome.COLUMNS},
        }
        return {self.path(context): rows.encode_part(rows.make(constants, columns), meter.cost)}

    def positions(self, context: Context) -> range:
        """Positions in the image list that this shard covers."""
        size = context.config.shard_size
        return range(self.shard * size, min((self.shard + 1) * size, self.column.num_images))

    def _constants(self, context: Context) -> Mapping[str, Any]:
        """The values that all rows of this part share."""
        classifier, attack, column = context.classifier(self.classifier), self.attack, self.column
        return {
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
            "seed": context.config.seed + (attack.seed if attack else 0),
        }


@dataclass(frozen=True)
class SanityBattery(Task):
    """Runs the sanity battery of one defence and classifier."""

    purifier: str
    classifier: str

    @property
    def label(self) -> str:
        """For progress."""
        return f"{self.purifier} before {self.classifier}: sanity battery"

    def path(self, context: Context) -> Path:
        """The findings."""
        name = rows.part_name(("battery", self.purifier, context.classifier_names[self.classifier]))
        return context.setup.output / "parts" / f"{name}.json"

    def effort(self) -> int:
        """About one PGD-20."""
        return 20

    def files(self, context: Context, inputs: Inputs) -> dict[Path, bytes]:
        """The findings, as JSON."""
        del inputs
        threat: Threat = "adaptive" if context.defence(self.purifier).traits.differentiable else "bpda"
        defended = context.defended(self.purifier, self.classifier, threat)
        batch = context.batch(range(min(context.config.num_probes, len(context.image_list))))
        seed, meter = context.config.seed, CostMeter()
        with meter.on(defended.model):
            flagged = flags(defended, batch, seed)
            checks = sanity.battery(defended, batch, threat, max(context.config.eps), seed)
            # after the battery, so that a model changed by an attack is found
            predictions = sanity.at_eps_zero(defended, batch, seed)
        found = BatteryResult(
            [asdict(check) for check in checks], predictions, [asdict(flag) for flag in flagged], meter.cost
        )
        return {self.path(context): json.dumps(asdict(found), indent=2).encode()}

    def result(self, context: Context) -> BatteryResult:
        """The findings of the finished task."""
        found = json.loads(self.path(context).read_bytes())
        predictions = {int(index): (prediction, right) for index, (prediction, right) in found["at_eps_zero"].items()}
        return BatteryResult(found["checks"], predictions, found["flags"], Cost(**found["cost"]))


@dataclass(frozen=True)
class BatteryResult:
    """The findings of one sanity battery: checks, predictions at eps 0 by official index, flags, and their cost."""

    checks: list[dict[str, Any]]
    at_eps_zero: dict[int, tuple[int, bool]]
    flags: list[dict[str, str]]
    cost: Cost


def _outcome(table: pa.Table) -> Outcome:
    """The outcome that rows record."""
    columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in Outcome.COLUMNS}
    return Outcome(**columns, num_draws=table["num_draws"][0].as_py())
