"""Digests that identify finished stages and evaluations, so that they can be reused.

A digest covers every key that decides the result (`config.deciding`) and the content behind names and paths: the files
of the data set, the weights of classifiers, the artifact to start from. It covers no path, so a checkout or a data
folder may be moved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maep import artifact, config
from maep.data.datasets import data_root, inventory
from maep.evaluate.config import EvaluateConfig
from maep.models.classifiers.load import load_classifier, weights_file
from maep.storage import sha256_file
from maep.train.config import ClassifierConfig, FinetuneConfig, PretrainConfig


def of_training(settings: ClassifierConfig | PretrainConfig | FinetuneConfig, upstream: dict[str, str]) -> str:
    """Digest of a training stage. `upstream` has the digests of earlier stages, by classifier name and `init`."""
    values: dict[str, Any] = config.deciding(settings)
    if isinstance(settings, PretrainConfig | FinetuneConfig):
        init = settings.init and artifact.read(settings.init).sha256
        values["init"] = upstream.get("init") or init
    if isinstance(settings, FinetuneConfig):
        root = data_root(settings.data)
        values["classifiers"] = [upstream.get(spec) or _classifier(spec, root) for spec in settings.classifiers]
    return config.digest([values, inventory(settings.data)])


def of_evaluation(settings: EvaluateConfig, purifiers: list[str]) -> str:
    """Digest of an evaluation of `purifiers` (sha256)."""
    root = data_root(settings.data)
    values = config.deciding(settings)
    values["classifiers"] = [_classifier(spec, root) for spec in settings.classifiers]
    return config.digest([values, inventory(settings.data), purifiers])


def _classifier(spec: str, root: Path) -> str:
    """The sha256 of an artifact, of an imported model with its code, or of a weights file; else the spec itself."""
    if artifact.is_valid(spec):
        return artifact.read(spec).sha256
    if spec.startswith("import:"):
        return load_classifier(spec, root).sha256
    file = weights_file(spec, root)
    return sha256_file(file) if file is not None and file.is_file() else spec
