"""The page of an evaluation, beside its result: figures from the rows, pictures made anew from its images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from maep.artifact import Artifact
from maep.attacks.config import AttackConfig
from maep.evaluate import pictures
from maep.evaluate.bench import Bench, Setup
from maep.evaluate.config import EvaluateConfig, eps_label
from maep.evaluate.presets import Source
from maep.evaluate.report import REPORT, write_report
from maep.evaluate.results import Result

_IMAGES = 4
_STEPS = 20


def write(result: Result, settings: EvaluateConfig, artifacts: Mapping[str, Artifact], command: str) -> Path:
    """Writes `report.html` into the folder of `result`, and says where."""
    path = result.folder / REPORT
    write_report(result, path, strips(settings, artifacts), command)
    return path


def strips(settings: EvaluateConfig, artifacts: Mapping[str, Artifact]) -> dict[str, bytes]:
    """Two PNGs for each purifier before the first classifier: attacked without, and with, knowledge of the purifier.

    PGD-20 at the oblivious budget, on the evaluation's first image of each of four classes.
    """
    folders = tuple((name, str(saved.folder)) for name, saved in artifacts.items())
    bench, spec = Bench(Setup(settings, folders, Path())), settings.classifiers[0]
    chosen = pictures.one_of_each(bench.image_set, _IMAGES)
    clean, labels = chosen.pixels(range(len(chosen))), chosen.labels.tolist()
    classifier, attack = bench.classifier(spec), AttackConfig("pgd", settings.oblivious_eps, _STEPS)
    found: dict[str, bytes] = {}
    for name in artifacts:
        for threat, source in (("oblivious", Source(None, spec)), ("adaptive", Source(name, spec))):
            attacked = pictures.attacked(bench.source_model(source), chosen, attack, settings.seed)
            picture = pictures.strip(classifier, bench.defence(name).module, clean, attacked, labels, chosen.classes)
            data = io.BytesIO()
            picture.save(data, "PNG", optimize=True)
            found[f"{name} before {classifier.name}, {threat} {attack.label} at {eps_label(attack.eps)}"] = (
                data.getvalue()
            )
    return found
