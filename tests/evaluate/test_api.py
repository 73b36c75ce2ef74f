"""The public interface: `import maep` attacks, evaluates and compares in one line each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluate_toys import zeros_and_ones

import maep
from maep import artifact
from maep.attacks.config import AttackConfig
from maep.errors import ConfigError
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.results.summary import Result
from maep.models.build import load_purifier_artifact
from maep.models.classifiers.load import Classifier


def test_importing_it_imports_no_torch() -> None:
    program = "import sys, maep; print('torch' in sys.modules, callable(maep.attack), 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr


def test_an_attack_by_its_name(classifier: Classifier) -> None:
    batch = zeros_and_ones()
    images, labels = batch.images[:8], batch.labels[:8]
    attacked = maep.attack(classifier, images, labels, "pgd", eps=8 / 255, steps=5)
    assert torch.equal(attacked, maep.attack(classifier, images, labels, AttackConfig("pgd", 8 / 255, 5)))
    assert 0 < (attacked - images).abs().max() <= 8 / 255 + 1e-6
    with pytest.raises(ConfigError, match="pgd"):
        maep.attack(classifier, images, labels, "pdg")
    with pytest.raises(ConfigError, match="norm"):
        maep.attack(classifier, images, labels, "fgsm", norm="L2")
    with pytest.raises(TypeError):
        maep.attack(classifier, images, labels, AttackConfig("pgd"), eps=8 / 255)


def test_module_and_artifact_are_evaluated_alike(
    small: EvaluateConfig, result: Result, purifier: artifact.Artifact, classifier: Classifier, tmp_path: Path
) -> None:
    module = load_purifier_artifact(purifier)
    found = maep.evaluate({"module": module, "folder": purifier.folder}, tmp_path / "out", small, baselines=[])
    keys = ("index", "threat", "attack", "eps")
    rows = found.rows().to_pandas().sort_values(list(keys))
    module_rows, folder_rows = (rows[rows["purifier"] == name] for name in ("module", "folder"))
    assert module_rows["loss"].tolist() == folder_rows["loss"].tolist()
    again = maep.evaluate({"module": module, "folder": purifier.folder}, tmp_path / "out", small, baselines=[])
    assert again.values == found.values
    with pytest.raises(ConfigError, match="eps"):
        maep.evaluate(module, tmp_path / "other", small, eps=[9])
    compared = maep.compare(f"{tmp_path / 'out'}:module", result)
    assert compared.rows
    assert {row.difference for row in compared.rows} == {0.0}
    with pytest.raises(ConfigError):
        maep.compare(tmp_path / "out", result)


def test_a_classifier_by_its_folder(digits_classifier: Path, classifier: Classifier) -> None:
    assert maep.load_classifier(str(digits_classifier)).sha256 == classifier.sha256
