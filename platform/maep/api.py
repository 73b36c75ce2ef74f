"""The functions of the public interface (see `maep`) that are not defined in another module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from maep import config as configuration
from maep import storage
from maep.artifact import Artifact
from maep.data.config import DataConfig
from maep.data.datasets import data_root
from maep.errors import ConfigError
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.protocol import run
from maep.evaluate.results import compare as comparison
from maep.evaluate.results import summary
from maep.evaluate.results.compare import Comparison
from maep.evaluate.results.summary import Result
from maep.models.classifiers import load as classifiers
from maep.models.classifiers.load import Classifier
from maep.tracking.resolve import resolve


def load_classifier(spec: str, root: str | Path | None = None) -> Classifier:
    """The classifier that `spec` names, in eval mode and frozen: images in [0, 1] to logits.

        maep.load_classifier("cifar10_resnet20")       # weights under `root`/weights
        maep.load_classifier("timm:resnet50")          # or torchvision:NAME, import:package.module:factory
        maep.load_classifier("outputs/classifier/model")

    `root` is the data root; None: $MAEP_DATA, else ./data. See `maep.models.classifiers.load` for what it raises.
    """
    return classifiers.load_classifier(spec, data_root(DataConfig()) if root is None else root)


def evaluate(
    purifiers: str | Path | Artifact | nn.Module | Mapping[str, str | Path | Artifact | nn.Module],
    output: str | Path,
    config: EvaluateConfig | str | Path | None = None,
    **settings: Any,
) -> Result:
    """Accuracies by threat model of `purifiers` and of the baselines, written to folder `output`.

        result = maep.evaluate("bundled:cifar10", "outputs/mine", num_images=256)
        result = maep.evaluate({"a": "outputs/a/model", "b": my_module}, "outputs/both", preset="standard")
        result.figure("a", "cifar10_resnet20", "adaptive", 8 / 255).accuracy

    purifiers  a purifier's URI, artifact folder, Artifact or nn.Module (images in [0, 1] to the same), or several by
               name; a single one is called `purifier`
    config     an EvaluateConfig, or a YAML file of one; None: its defaults
    settings   keys of EvaluateConfig that replace those of `config`: preset, images, num_images, classifiers, eps ...

    Called again with the same arguments, it returns the finished result or resumes an interrupted evaluation. Raises
    UserError for what cannot be evaluated, and if `output` holds a different evaluation.
    """
    if storage.is_remote(str(output)):
        raise ConfigError(f"output: {output} must be a local folder")
    named = purifiers if isinstance(purifiers, Mapping) else {"purifier": purifiers}
    if isinstance(config, EvaluateConfig):
        values = configuration.to_dict(config)
    else:
        values = configuration.read_yaml(config) if config is not None else {}
    built = configuration.build(EvaluateConfig, {**values, **settings})
    found = {name: resolve(each) if isinstance(each, str | Path) else each for name, each in named.items()}
    return run.evaluate(built, found, output)


def compare(ours: Result | str | Path, theirs: Result | str | Path) -> Comparison:
    """Compares two purifiers of finished evaluations on the same images, with paired tests.

        maep.compare("outputs/a", "outputs/b:conv").rows          # FOLDER:PURIFIER where a result has several

    Raises ConfigError if the two are not comparable, or if a folder holds several purifiers and none is named.
    """
    (a, a_name), (b, b_name) = (_side(side) for side in (ours, theirs))
    return comparison.compare(a, b, a_name, b_name)


def _side(side: Result | str | Path) -> tuple[Result, str | None]:
    if isinstance(side, Result):
        return side, None
    folder, name = comparison.parse_side(str(side))
    return summary.read(folder), name
