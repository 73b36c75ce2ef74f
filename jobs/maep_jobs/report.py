"""Writes the page of an evaluation beside its result, with example images that it attacks for the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maep import storage
from maep.artifact import Artifact
from maep.attacks.config import AttackConfig
from maep.evaluate.config import EvaluateConfig, eps_label
from maep.evaluate.protocol.context import Context
from maep.evaluate.protocol.presets import Source
from maep.evaluate.report import pictures
from maep.evaluate.report.report import REPORT, write_report
from maep.evaluate.results.summary import Result

_STEPS = 20


def write(result: Result, settings: EvaluateConfig, artifacts: Mapping[str, Artifact], command: str) -> Path:
    """Writes `report.html` into the folder of `result` and returns its path."""
    path = result.folder / REPORT
    write_report(result, path, strips(settings, artifacts), command)
    return path


def strips(settings: EvaluateConfig, artifacts: Mapping[str, Artifact]) -> dict[str, bytes]:
    """Two PNGs per purifier, by description: attacked obliviously and adaptively, in front of the first classifier.

    PGD-20 at the oblivious budget, on the first image of each of four classes.
    """
    context, spec = _context(settings, artifacts), settings.classifiers[0]
    where = f"PGD-{_STEPS} at {eps_label(settings.oblivious_eps)}"
    found: dict[str, bytes] = {}
    for name in artifacts:
        for threat, source in (("oblivious", Source(None, spec)), ("adaptive", Source(name, spec))):
            key = f"{name} in front of {context.classifier(spec).name}, {threat} {where}"
            found[key] = _strip(context, name, source, num_images=4)
    return found


def write_strip(settings: EvaluateConfig, purifier: Artifact, path: Path) -> Path:
    """Writes a PNG of the first image of each of six classes, attacked (PGD-20, last classifier) and purified."""
    context = _context(settings, {"purifier": purifier})
    storage.write_bytes(path, _strip(context, "purifier", Source(None, settings.classifiers[-1]), num_images=6))
    return path


def _context(settings: EvaluateConfig, artifacts: Mapping[str, Artifact]) -> Context:
    return Context(settings, {name: str(saved.folder) for name, saved in artifacts.items()}, Path())


def _strip(context: Context, name: str, source: Source, num_images: int) -> bytes:
    settings = context.config
    chosen = pictures.one_of_each(context.image_set, num_images)
    attack = AttackConfig("pgd", settings.oblivious_eps, _STEPS)
    attacked = pictures.attacked(context.source_model(source), chosen, attack, settings.seed)
    clean, labels = chosen.pixels(range(len(chosen))), chosen.labels.tolist()
    classifier, purifier = context.classifier(source.classifier), context.defence(name).module
    return pictures.strip(classifier, purifier, clean, attacked, labels, chosen.classes)
