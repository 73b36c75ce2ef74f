from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import LOOP, Heard, weights

from maep import config
from maep.artifact import Artifact
from maep.data.datasets import DataConfig, load
from maep.errors import ArtifactError, ConfigError
from maep.models.classifiers import load_classifier
from maep.train.classifier import ClassifierConfig, classification, dev_accuracy
from maep.train.loop import run


def test_it_learns_the_digits(trained_accuracy: float) -> None:
    assert trained_accuracy > 0.9


def test_its_artifact_is_a_classifier_to_protect(trained_classifier: Artifact, trained_accuracy: float) -> None:
    classifier = load_classifier(str(trained_classifier.folder))
    assert classifier.name == "tiny"
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    images = load(DataConfig("digits"), "dev")
    pixels, labels = images.batch(range(len(images)))
    logits = classifier(pixels)
    assert logits.shape == (len(images), 10)
    assert float((logits.argmax(1) == labels).float().mean()) == pytest.approx(trained_accuracy)
    assert classifier.classes == images.classes


def test_a_stopped_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Batch norm's running statistics are part of the state."""
    settings = config.build(ClassifierConfig, {"depth": 8, "width": 4, "loop": LOOP | {"lr": 1e-2}})
    whole = run(classification(settings), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(classification(settings), tmp_path / "stopped", [Heard(stop_after_checkpoints=2)])
    result = run(classification(settings), tmp_path / "stopped")
    assert weights(result) == weights(whole)
    assert any("running_mean" in name for name in result.weights())


def test_its_normalisation_is_the_datas_own(trained_classifier: Artifact) -> None:
    images = load(DataConfig("digits"), "train")
    pixels = torch.from_numpy(images.pixels(range(len(images)))).float() / 255
    assert trained_classifier.config["mean"] == pytest.approx(pixels.mean(dim=(0, 1, 2)).tolist(), abs=1e-3)
    assert trained_classifier.config["std"] == pytest.approx(pixels.std(dim=(0, 1, 2)).tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 10}, "depth: 10 is not 6n + 2, such as 8, 20, 56"),
        ({"depth": 2}, "depth: 2 is not 6n + 2"),
        ({"width": 0}, "width: 0 must be at least 1"),
        ({"data": {"name": "cifar100"}}, "data.name: 'cifar100' is not known: did you mean 'cifar10'?"),
        ({"dpeth": 8}, "unknown key 'dpeth': did you mean 'depth'?"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(ClassifierConfig, values)
    assert message in str(caught.value)


def test_only_a_classifier_has_an_accuracy(unkilled_pretrain: Any) -> None:
    with pytest.raises(ArtifactError, match="holds a mae, not a classifier"):
        dev_accuracy(unkilled_pretrain[0], DataConfig("digits"))


def test_an_unknown_data_set_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from maep_jobs import cli

    assert cli.main(["classifier", "train", "digit"]) == 2
    assert capsys.readouterr().err == "maep classifier: data set 'digit' is not known: did you mean 'digits'?\n"
