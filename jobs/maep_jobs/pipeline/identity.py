"""What decides a result, as a digest, so that a finished one is found again by the name of its folder.

Settings of where, how often and on how many workers are left out, and so is every path: a checkout or a data folder
that moves makes nothing anew. What lies behind a name is in it: the files of the data set, the classifiers' weights.
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
    """Digest of a training stage. `upstream` maps what earlier stages make (classifiers, `init`) to their digests."""
    values = config.deciding(settings)
    inputs: list[Any] = [inventory(settings.data)]
    if isinstance(settings, PretrainConfig):
        init = values.pop("init")
        inputs += [artifact.read(init).sha256] if init else []
    if isinstance(settings, FinetuneConfig):
        root = data_root(settings.data)
        inputs.append([upstream.get(spec) or _classifier(spec, root) for spec in values.pop("classifiers")])
        inputs.append(upstream.get("init") or (values["init"] and artifact.read(values["init"]).sha256))
        values.pop("init")
    return config.digest([values, inputs])


def of_evaluation(settings: EvaluateConfig, purifiers: list[str]) -> str:
    """Digest of an evaluation of `purifiers` (sha256)."""
    root = data_root(settings.data)
    classifiers = [_classifier(spec, root) for spec in settings.classifiers]
    values = config.deciding(settings) | {"classifiers": classifiers}
    return config.digest([values, inventory(settings.data), purifiers])


def _classifier(spec: str, root: Path) -> str:
    """A digest of the weights where they lie on disk, of the user's model and its code, else the spec itself."""
    if artifact.is_valid(spec):
        return artifact.read(spec).sha256
    if spec.startswith("import:"):
        return load_classifier(spec, root).sha256
    file = weights_file(spec, root)
    return sha256_file(file) if file is not None and file.is_file() else spec
