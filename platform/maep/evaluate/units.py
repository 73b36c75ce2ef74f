"""The units of work of an evaluation, and how one is done: each writes its own part, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import storage
from maep.attacks.config import AttackConfig
from maep.attacks.gradient import attack
from maep.data import adversarial
from maep.errors import ConfigError
from maep.evaluate import rows, sanity
from maep.evaluate.bench import Bench, Expectation
from maep.evaluate.config import NORM, EvaluateConfig, Threat, adaptive_attacks, oblivious_attacks


@dataclass(frozen=True)
class Craft:
    """One shard of the oblivious images of a classifier."""

    classifier: str
    attack: AttackConfig
    shard: int

    @property
    def label(self) -> str:
        """For progress."""
        return f"attacking {self.classifier} with {self.attack.label}"


@dataclass(frozen=True)
class Unit:
    """One shard of images behind one defence and classifier in one threat model; its attacks are a cascade."""

    purifier: str
    classifier: str
    threat: Threat
    eps: float
    shard: int

    @property
    def label(self) -> str:
        """For progress."""
        return f"{self.purifier} on {self.classifier}: {self.threat}"


@dataclass(frozen=True)
class Probe:
    """The sanity battery of one defence and classifier."""

    purifier: str
    classifier: str

    @property
    def label(self) -> str:
        """For progress."""
        return f"{self.purifier} on {self.classifier}: sanity battery"


Task = Craft | Unit | Probe


@dataclass
class Outcome:
    """Of B images: prediction int64, loss float32, linf float32, inherited bool, all [B]."""

    prediction: Tensor
    loss: Tensor
    linf: Tensor
    inherited: Tensor


@dataclass(frozen=True)
class Probed:
    """What a probe found: the checks of the battery, the answers at eps 0, and what it all took."""

    checks: list[dict[str, Any]]
    at_eps_zero: dict[int, tuple[int, bool]]
    cost: rows.Cost


def run(bench: Bench, task: Task) -> None:
    """Does one task and keeps what it found; what is there already is not done again."""
    with torch.random.fork_rng(devices=[]):
        try:
            match task:
                case Craft():
                    _craft(bench, task)
                case Unit():
                    _evaluate(bench, task)
                case Probe():
                    _probe(bench, task)
        except FloatingPointError as error:
            raise ConfigError(f"{task.label}: {error}: its weights are damaged or it divides by zero") from None


def attacks_of(config: EvaluateConfig, unit: Unit) -> tuple[AttackConfig | None, ...]:
    """The attacks whose parts a unit writes, in order; None is no attack."""
    if unit.threat == "clean":
        return (None,)
    return oblivious_attacks(config) if unit.threat == "oblivious" else adaptive_attacks(config, unit.eps)


def part_path(bench: Bench, unit: Unit, attack_config: AttackConfig | None) -> Path:
    """Where the rows of one unit and attack are kept until the evaluation is finished."""
    label = attack_config.label if attack_config else "clean"
    classifier = bench.classifier(unit.classifier)
    words = (unit.purifier, classifier.name, unit.threat, label, unit.eps, unit.shard)
    return bench.setup.output / "parts" / f"{rows.part_name(words)}.parquet"


def probe_paths(bench: Bench, probe: Probe) -> tuple[Path, Path]:
    """Where the checks of a probe, and its answers at eps 0 and cost, are kept until the evaluation is finished."""
    pair = (probe.purifier, bench.classifier(probe.classifier).name)
    checks, answers = (rows.part_name((what, *pair)) for what in ("sanity", "answers"))
    return bench.setup.output / "parts" / f"{checks}.json", bench.setup.output / "parts" / f"{answers}.json"


def is_done(bench: Bench, task: Task) -> bool:
    """Whether a task has left all it should."""
    match task:
        case Craft():
            return adversarial.is_finished(bench.attacked_folder(task.classifier, task.attack))
        case Unit():
            return all(part_path(bench, task, config).is_file() for config in attacks_of(bench.config, task))
        case Probe():
            return all(path.is_file() for path in probe_paths(bench, task))


def read_probe(bench: Bench, probe: Probe) -> Probed:
    """What a finished probe has left."""
    checks, found = (json.loads(path.read_text(encoding="utf-8")) for path in probe_paths(bench, probe))
    answers = {index: (prediction, right) for index, prediction, right in found["at_eps_zero"]}
    return Probed(checks, answers, rows.Cost(*found["cost"]))


def positions(bench: Bench, unit: Unit) -> range:
    """Places in the image list that this unit's shard covers."""
    total = len(bench.image_list)
    if unit.threat in ("adaptive", "bpda"):
        total = min(total, bench.config.num_adaptive or total)
    size = bench.config.batch_size
    return range(unit.shard * size, min((unit.shard + 1) * size, total))


def _craft(bench: Bench, task: Craft) -> None:
    folder = bench.attacked_folder(task.classifier, task.attack)
    classifier = bench.classifier(task.classifier)
    adversarial.make_shard(folder, classifier, bench.image_set, task.attack, bench.config.seed, task.shard)


def _probe(bench: Bench, probe: Probe) -> None:
    defence = bench.defence(probe.purifier)
    threat: Threat = "adaptive" if defence.differentiable else "bpda"
    model = bench.defended(probe.purifier, probe.classifier, threat)
    where = range(min(bench.config.num_probes, len(bench.image_list)))
    images, labels = bench.batch(where)
    indices = torch.from_numpy(bench.image_set.indices[where.start : where.stop])
    passes = bench.config.eot if defence.randomised else None
    meter, seed = adversarial.Meter(), bench.config.seed
    with meter.on(model):
        checks = sanity.battery(model, images, labels, indices, threat, max(bench.config.eps), seed, passes)
        # After the battery, so that a model which an attack has changed is seen.
        answers = sanity.at_eps_zero(model, images, labels, indices, seed, passes)
    found = {
        "at_eps_zero": [(index, *answer) for index, answer in answers.items()],
        "cost": [meter.forward_passes, meter.seconds],
    }
    checks_path, answers_path = probe_paths(bench, probe)
    storage.write_bytes(answers_path, json.dumps(found).encode())
    storage.write_bytes(checks_path, json.dumps([check.to_dict() for check in checks], indent=2).encode())


def _evaluate(bench: Bench, unit: Unit) -> None:
    where = positions(bench, unit)
    images, labels = bench.batch(where)
    model = bench.defended(unit.purifier, unit.classifier, unit.threat)
    before: Outcome | None = None
    for config in attacks_of(bench.config, unit):
        path = part_path(bench, unit, config)
        if path.is_file():
            before = _read_outcome(path)
            continue
        meter = adversarial.Meter()
        with meter.on(model):
            torch.manual_seed(_seed(bench, unit, config))
            if config is None:
                outcome = _outcome(model, images, images, labels)
            elif unit.threat == "oblivious":
                outcome = _outcome(model, bench.attacked(unit.classifier, config, where), images, labels)
            else:
                before = before or _outcome(model, images, images, labels)
                outcome = _through(bench, unit, model, images, labels, before, config)
        cost = rows.Cost(meter.forward_passes, meter.seconds)
        rows.write_part(path, _table(bench, unit, config, where, labels, outcome), cost)
        before = outcome


def _through(
    bench: Bench, unit: Unit, model: nn.Module, images: Tensor, labels: Tensor, before: Outcome, config: AttackConfig
) -> Outcome:
    """One attack of the cascade, on the images that are still right; the others keep their outcome."""
    right = before.prediction == labels
    result = Outcome(before.prediction.clone(), before.loss.clone(), before.linf.clone(), ~right)
    if not right.any():
        return result
    where = positions(bench, unit)
    indices = torch.from_numpy(bench.image_set.indices[where.start : where.stop])
    keys = adversarial.attack_keys(config, bench.config.seed, indices)
    randomised = bench.defence(unit.purifier).randomised
    target = Expectation(model, bench.config.eot) if randomised else model
    attacked = attack(target, images[right], labels[right], config, keys[right], stop_when_broken=True)
    found = _outcome(model, attacked, images[right], labels[right])
    for column in ("prediction", "loss", "linf"):
        getattr(result, column)[right] = getattr(found, column)
    return result


@torch.no_grad()
def _outcome(model: nn.Module, attacked: Tensor, images: Tensor, labels: Tensor) -> Outcome:
    logits = model(attacked)
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the logits are NaN or infinite")
    loss = F.cross_entropy(logits, labels, reduction="none")
    linf = (attacked - images).abs().amax(dim=(1, 2, 3))
    return Outcome(logits.argmax(dim=1), loss, linf, torch.zeros(len(labels), dtype=torch.bool))


def _read_outcome(path: Path) -> Outcome:
    table, _ = rows.read_part(path)
    columns = (torch.from_numpy(table[name].to_numpy().copy()) for name in ("prediction", "loss", "linf", "inherited"))
    return Outcome(*columns)


def _seed(bench: Bench, unit: Unit, config: AttackConfig | None) -> int:
    """What a randomised purifier draws from: its own for each unit and attack, whichever process runs it."""
    words = (bench.config.seed, unit.purifier, unit.classifier, unit.threat, unit.eps, unit.shard, config)
    return int(storage.sha256(repr(words).encode())[:15], 16)


def _table(
    bench: Bench, unit: Unit, config: AttackConfig | None, where: range, labels: Tensor, outcome: Outcome
) -> pa.Table:
    defence, classifier = bench.defence(unit.purifier), bench.classifier(unit.classifier)
    through = unit.threat in ("adaptive", "bpda")
    constants = {
        "dataset": bench.image_list.dataset,
        "split": bench.image_list.split,
        "image_list": bench.image_list.name,
        "purifier": unit.purifier,
        "purifier_sha256": defence.sha256,
        "classifier": classifier.name,
        "classifier_sha256": classifier.sha256,
        "threat": unit.threat,
        "norm": NORM,
        "attack": config.label if config else "clean",
        "eps": config.eps if config else 0.0,
        "steps": config.steps if config else 0,
        "eot": bench.config.eot if through and defence.randomised else 1,
        "seed": bench.config.seed,
    }
    columns = {
        "index": bench.image_set.indices[where.start : where.stop],
        "label": labels.numpy(),
        "prediction": outcome.prediction.numpy(),
        "correct": (outcome.prediction == labels).numpy(),
        "loss": outcome.loss.numpy(),
        "linf": outcome.linf.numpy(),
        "inherited": outcome.inherited.numpy(),
    }
    return rows.make(constants, columns)
