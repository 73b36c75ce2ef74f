from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_toys import LOOP, Heard, weights

from maep import config
from maep.artifact import Artifact
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.errors import ArtifactError, ConfigError
from maep.models.classifiers.architectures import ThinVgg
from maep.models.classifiers.load import load_classifier
from maep.train.batch import Batch
from maep.train.classifier import Classification, classification, dev_accuracy
from maep.train.config import ClassifierConfig
from maep.train.loop.run import run


def test_classifier_learns_digits(trained_accuracy: float) -> None:
    assert trained_accuracy > 0.9


def test_trained_artifact_loads_as_a_classifier(trained_classifier: Artifact, trained_accuracy: float) -> None:
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


def test_vgg_learns_digits(tmp_path: Path) -> None:
    loop = LOOP | {"samples": 7000, "batch_size": 50, "lr": 1e-2, "checkpoint_every": 10**6}
    shape = {"family": "vgg", "depth": 5, "width": 6, "label_smoothing": 0.1}
    settings = config.build(ClassifierConfig, {"name": "other", "loop": loop} | shape)
    trained = run(classification(settings), tmp_path)
    assert dev_accuracy(trained, DataConfig("digits")) > 0.9
    assert isinstance(load_classifier(str(trained.folder)).model, ThinVgg)
    assert "thin VGG-5" in (trained.folder / "card.md").read_text()


def test_label_smoothing_matches_the_paper() -> None:
    """Loss of uniform logits is log(classes) for any smoothing; of a sure right answer it is what the rest weighs."""
    images, labels = torch.rand(4, 3, 2, 2), torch.arange(4) % 3
    keys = torch.zeros(4, dtype=torch.int64)
    batch = Batch(images, labels, keys, step_key=0, places=torch.arange(4), size=4, progress=0.0)

    class Sure(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 9.0 * nn.functional.one_hot(labels, 3).float()

    objective = Classification(Sure(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), label_smoothing=0.3)
    total = math.log(math.exp(9) + 2)
    wanted = 0.8 * (total - 9) + 0.2 * total  # 0.7 on the label, 0.1 on each of the three
    assert float(objective(batch).loss) == pytest.approx(wanted, rel=1e-5)


def test_stopped_training_resumes_to_identical_bits(tmp_path: Path) -> None:
    """Batch norm's running statistics are part of the state."""
    settings = config.build(ClassifierConfig, {"depth": 8, "width": 4, "loop": LOOP | {"lr": 1e-2}})
    whole = run(classification(settings), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(classification(settings), tmp_path / "stopped", [Heard(stop_after_checkpoints=2)])
    result = run(classification(settings), tmp_path / "stopped")
    assert weights(result) == weights(whole)
    assert any("running_mean" in name for name in result.weights())


def test_normalisation_is_computed_from_the_data(trained_classifier: Artifact) -> None:
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
        (
            {"loop": {"keep_best": "dev_clean"}},
            "loop.keep_best: dev_clean: a classifier is not validated: leave it out",
        ),
        ({"family": "vgg", "depth": 9}, "depth: 9 is not 3n + 2, such as 5, 11, 29"),
        ({"family": "vit"}, "family"),
        ({"label_smoothing": 1}, "label_smoothing: 1.0 must be in [0, 1)"),
        ({"data": {"name": "cifar100"}}, "data.name: 'cifar100' is not known: did you mean 'cifar10'?"),
        ({"dpeth": 8}, "unknown key 'dpeth': did you mean 'depth'?"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(ClassifierConfig, values)
    assert message in str(caught.value)


def test_dev_accuracy_refuses_other_artifacts(unkilled_pretrain: Any) -> None:
    with pytest.raises(ArtifactError, match=r"mae.*classifier"):
        dev_accuracy(unkilled_pretrain[0], DataConfig("digits"))


def test_unknown_data_set_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    from maep_jobs import cli

    assert cli.main(["classifier", "train", "digit"]) == 2
    assert capsys.readouterr().err == "maep classifier: data set 'digit' is not known: did you mean 'digits'?\n"
