"""Where a classifier comes from (a name, timm, torchvision, an import path, a folder), and how each source fails."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import refusal, trained_like
from safetensors.torch import save_file
from torch import nn

from maep import artifact
from maep.errors import ArtifactError, ConfigError, DataError, UnavailableError
from maep.models.classifiers.architectures import CifarResNet, ThinVgg
from maep.models.classifiers.load import Classifier, load_classifier


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    assert "'cifar10_resnet20'" in refusal("cifar10_resnet21", ConfigError)
    assert "'resnet18'" in refusal("timm:resnett18", ConfigError)
    assert "'resnet18." in refusal("timm:resnet18.a1_in1kk", ConfigError)
    assert "timm:beit3_giant_patch14_224" in refusal("timm:beit3_giant_patch14_224", ConfigError)  # without weights
    assert "'squeezenet1_0'" in refusal("torchvision:squeezenet10", ConfigError)
    assert "torchvision:fcn_resnet50" in refusal(
        "torchvision:fcn_resnet50", ConfigError
    )  # a segmenter, not a classifier
    assert "tim:resnet18" in refusal("tim:resnet18", ConfigError)
    assert "holds no MANIFEST.json" in refusal(str(tmp_path), ArtifactError)


def test_missing_weights_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    message = refusal("cifar10_resnet20", DataError, tmp_path)
    assert str(tmp_path / "weights" / "cifar10_resnet20.safetensors") in message
    assert "$MAEP_DATA" in message
    assert "maep classifier train" in message


def test_damaged_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "cifar10_resnet20.safetensors"
    path.parent.mkdir()
    good = trained_like(20).state_dict()
    save_file(good, path)
    assert load_classifier("cifar10_resnet20", tmp_path).name == "cifar10_resnet20"
    whole = path.read_bytes()
    for data in (whole[:-100], whole[:5], b"", b"not a safetensors file at all", b"<html>404</html>" * 100):
        path.write_bytes(data)
        assert str(path) in refusal("cifar10_resnet20", DataError, tmp_path)
    foreign = {
        "'linear.bias'": {name: t for name, t in good.items() if name != "linear.bias"},
        "'layer1.3": trained_like(26).state_dict(),  # deeper: it holds every weight of a ResNet-20, and more
        "cifar10_resnet20": {"fc.weight": torch.zeros(2)},
        "size mismatch": good | {"linear.weight": torch.zeros(100, 64), "linear.bias": torch.zeros(100)},
        "NaN": good | {"linear.bias": torch.full((10,), torch.nan)},
    }
    for message, weights in foreign.items():
        save_file(weights, path)
        assert message in refusal("cifar10_resnet20", DataError, tmp_path)


def test_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens on the discard port
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for spec in ("timm:test_resnet", "torchvision:squeezenet1_1"):
        message = refusal(spec, UnavailableError)
        assert spec in message


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.usefixtures("importable")
def test_import_path_of_a_factory_a_class_and_a_model() -> None:
    images = torch.rand(2, 3, 2, 2)
    for factory in ("Probe", "probe"):
        classifier = load_classifier(f"import:importable_classifiers:{factory}")
        torch.testing.assert_close(classifier(images), images.mean(dim=(2, 3)))
        assert classifier.name == f"import:importable_classifiers:{factory}"
        assert classifier.classes == ()
    ready = load_classifier("import:importable_classifiers:READY")
    assert ready(images).shape == (2, 3)
    assert not ready.model.training
    assert not any(parameter.requires_grad for parameter in ready.parameters())


def test_identity_of_an_imported_model_covers_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal weights (none) and structure, but another `forward`, here in a module that the named one imports."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = """
from torch import nn

class Probe(nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3))SUFFIX
"""
    digests = []
    for number, suffix in enumerate(("", " * 2", "")):
        (tmp_path / f"its_parts_{number}.py").write_text(module.replace("SUFFIX", suffix))
        user = f"from its_parts_{number} import Probe\n\ndef make():\n    return Probe()\n"
        (tmp_path / "its_user.py").write_text(user.replace(f"its_parts_{number}", "its_parts"))
        (tmp_path / "its_parts.py").write_text((tmp_path / f"its_parts_{number}.py").read_text())
        for name in ("its_user", "its_parts"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        classifier = load_classifier("import:its_user:make")
        images = torch.rand(1, 3, 2, 2)
        torch.testing.assert_close(classifier(images), images.mean(dim=(2, 3)) * (2 if suffix else 1))
        digests.append(classifier.sha256)
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_here:probe", "no_such_module_here"),
        ("importable_but_broken:probe", "broken at import on two lines"),
        ("importable_classifiers:prob", "'probe'"),
        ("importable_classifiers:no_model", "int"),
        ("importable_classifiers:NUMBER", "NUMBER"),
        ("importable_classifiers:fails", "FileNotFoundError"),
        ("importable_classifiers:wants_depth", "TypeError"),
        ("importable_classifiers", "package.module:factory"),
        (":probe", "package.module:factory"),
        ("importable_classifiers:", "package.module:factory"),
    ],
)
def test_import_paths_without_a_model_are_refused(path: str, message: str) -> None:
    assert message in refusal(f"import:{path}", ConfigError)


CONFIG = {
    "name": "digits_resnet8",
    "model": {"depth": 8, "num_classes": 3, "width": 4},
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "classes": ["a", "b", "c"],
}


def write(folder: Path, kind: str = "classifier", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = CifarResNet(8, 3, 4).eval()
    artifact.write(folder, kind, CONFIG | changes, model.state_dict(), "card")
    return model


def test_classifier_from_a_folder(tmp_path: Path) -> None:
    model = write(tmp_path / "c")
    loaded = load_classifier(str(tmp_path / "c"))
    assert (loaded.name, loaded.classes) == ("digits_resnet8", ("a", "b", "c"))
    assert loaded.sha256 == Classifier(model, "any", CONFIG["mean"], CONFIG["std"]).sha256  # type: ignore[arg-type]
    images = torch.rand(4, 3, 8, 8)
    wanted = model((images - torch.tensor(CONFIG["mean"]).view(3, 1, 1)) / torch.tensor(CONFIG["std"]).view(3, 1, 1))
    torch.testing.assert_close(loaded(images), wanted, rtol=1e-4, atol=1e-5)


def test_identity_of_a_folder_covers_its_normalisation(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", std=[0.2, 0.3, 0.5])
    write(tmp_path / "c", name="renamed")
    a, b, c = (load_classifier(str(tmp_path / name)).sha256 for name in "abc")
    assert a != b
    assert a == c


def test_folder_of_a_vgg(tmp_path: Path) -> None:
    model = trained_like(8, "vgg", 4)
    shape = {"family": "vgg", "depth": 8, "num_classes": 10, "width": 4}
    artifact.write(tmp_path / "c", "classifier", CONFIG | {"model": shape}, model.state_dict(), "card")
    loaded = load_classifier(str(tmp_path / "c"))
    assert isinstance(loaded.model, ThinVgg)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())
    images = torch.rand(4, 3, 32, 32)
    wanted = Classifier(model, "plain", CONFIG["mean"], CONFIG["std"])(images)  # type: ignore[arg-type]
    torch.testing.assert_close(loaded(images), wanted, rtol=1e-4, atol=1e-5)


def test_folders_without_a_sound_classifier_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "purifier"}, "purifier"),
        ({"model": {"depth": 9, "num_classes": 3, "width": 4}}, "6n \\+ 2"),
        ({"model": {"depht": 8}}, "depht"),
        ({"model": {"family": "vgk", "depth": 8}}, "'vgk'.*'vgg'"),
        ({"model": {"family": "vgg", "depth": 9}}, "3n \\+ 2"),
        ({"model": {"depth": 8, "num_classes": 4, "width": 4}}, "linear"),
        ({"mean": None}, "config.json"),
        ({"model": None}, "config.json"),
    ]
    for changes, message in cases:
        write(folder, **changes)
        with pytest.raises(ArtifactError, match=message) as caught:
            load_classifier(str(folder))
        assert "\n" not in str(caught.value)
        shutil.rmtree(folder)
    write(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "model.safetensors" in refusal(str(folder), ArtifactError)
