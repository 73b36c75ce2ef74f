from __future__ import annotations

import hashlib
import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from maep import artifact
from maep.data import datasets, lists
from maep.data.config import DataConfig
from maep.errors import ArtifactError, ConfigError, DataError, UnavailableError, UserError
from maep.models.classifiers.architectures import CifarResNet, ThinVgg, build
from maep.models.classifiers.load import Classifier, fold_batch_norm, load_classifier, weights_sha256

NORMALISATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def num_correct(classifier: nn.Module, images: Any, batch_size: int = 250) -> int:
    correct = 0
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            pixels, labels = images.batch(range(start, min(start + batch_size, len(images))))
            correct += int((classifier(pixels).argmax(dim=1) == labels).sum())
    return correct


def assert_same_classes(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Of every image whose two best logits are further apart than rounding."""
    best = wanted.topk(2, dim=1).values
    sure = best[:, 0] - best[:, 1] > 1e-3 * wanted.abs().max()
    assert sure.float().mean() > 0.5
    assert torch.equal(found.argmax(dim=1)[sure], wanted.argmax(dim=1)[sure])


def shared(root: Path, name: str, image_list: str) -> Any:
    named = lists.named(image_list)
    return lists.pick(datasets.load(DataConfig(name, str(root)), named.split), named)  # type: ignore[arg-type]


def trained_like(depth: int = 20, family: str = "resnet", width: int = 16) -> nn.Module:
    """Random weights with batch-norm statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = build({"family": family, "depth": depth, "width": width})
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 32, 32))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model.eval()


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("spec", "data", "image_list", "num", "correct"),
    [
        ("cifar10_resnet20", "cifar10", "cifar10-dev-500", 500, 455),
        ("cifar10_resnet56", "cifar10", "cifar10-test-256", 256, 239),
        ("imagenet_squeezenet1_0", "imagenet", "imagenet-slice-dev-128", 32, 16),
    ],
)
def test_accuracy_on_a_list(shared_data: Path, spec: str, data: str, image_list: str, num: int, correct: int) -> None:
    classifier = load_classifier(spec, shared_data)
    images = shared(shared_data, data, image_list)
    assert (
        abs(num_correct(classifier, images.select(range(num))) - correct) <= 2
    )  # an image at the boundary, by rounding
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert not any(module.training for module in classifier.modules())
    assert len(classifier.classes) == {"cifar10": 10, "imagenet": 1000}[data]


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("spec", "data", "correct"),
    [
        ("cifar10_resnet20", "cifar10", 8243),
        ("cifar10_resnet44", "cifar10", 8374),
        ("cifar10_resnet56", "cifar10", 8402),
        ("imagenet_squeezenet1_0", "imagenet", 507),
    ],
)
def test_accuracy_on_all_shared_images(shared_data: Path, spec: str, data: str, correct: int) -> None:
    classifier = load_classifier(spec, shared_data)
    config = DataConfig(data, str(shared_data))  # type: ignore[arg-type]
    parts = [datasets.load(config, "dev"), datasets.load(config, "test")]
    assert sum(map(len, parts)) == {"cifar10": 9000, "imagenet": 800}[data]
    assert abs(sum(num_correct(classifier, part) for part in parts) - correct) <= 0.003 * sum(map(len, parts))


@pytest.mark.parametrize("family", ["resnet", "vgg"])
def test_folding_changes_no_prediction(family: str) -> None:
    plain = Classifier(trained_like(20, family, 8), "plain")
    images = torch.rand(64, 3, 32, 32)
    with torch.no_grad():
        wanted = plain(images)
        folded = fold_batch_norm(plain)
        found = folded(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert_same_classes(found, wanted)


@pytest.mark.shared_data
def test_folding_the_shared_weights(shared_data: Path) -> None:
    folded = load_classifier("cifar10_resnet20", shared_data)
    model = CifarResNet(20).eval()
    model.load_state_dict(load_file(shared_data / "weights" / "cifar10_resnet20.safetensors"))
    plain = Classifier(model, "plain", *NORMALISATION)
    images, _ = shared(shared_data, "cifar10", "cifar10-dev-500").batch(range(128))
    with torch.no_grad():
        wanted, found = plain(images), folded(images)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert_same_classes(found, wanted)
    assert folded.sha256 == plain.sha256  # of the weights as they were, not of the folded ones
    assert folded.sha256 != Classifier(folded.model, "folded", *NORMALISATION).sha256
    assert folded.sha256 == load_classifier("cifar10_resnet20", shared_data).sha256


def test_weights_sha256_is_over_names_and_values() -> None:
    model = nn.Linear(2, 1)
    model.load_state_dict({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
    digest = hashlib.sha256(b"weight" + b"\0\0\x80?\0\0\0@" + b"bias" + b"\0\0@@").hexdigest()
    assert weights_sha256(model) == digest
    with torch.no_grad():
        model.bias.add_(1e-6)
    assert weights_sha256(model) != digest
    assert len(weights_sha256(nn.Linear(2, 1).bfloat16())) == 64


def test_identity_is_of_all_that_decides_the_answers() -> None:
    def sha256(model: nn.Module, *rest: Any, **more: Any) -> str:
        return Classifier(model, "any name", *rest, **more).sha256

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU())
    first = sha256(model)
    assert first == sha256(model) == Classifier(model, "another name", classes=("a", "b", "c")).sha256
    others = [
        sha256(model, (0.1, 0.0, 0.0)),
        sha256(model, (0.0, 0.0, 0.0), (1.0, 1.0, 0.9)),
        sha256(nn.Sequential(model[0], model[1], nn.GELU())),  # the same weights by the same names
        sha256(model, code="the text of a forward"),
    ]
    with torch.no_grad():
        model[1].bias[0] += 1e-6
    others.append(sha256(model))
    assert len({first, *others}) == 6


def test_identity_is_the_same_in_every_process() -> None:
    """A model that prints the address of one of its parts."""

    class Printed(nn.Module):
        def extra_repr(self) -> str:
            return f"function={object()!r}, size=3"

    first, second = Printed(), Printed()
    assert Classifier(first, "c").sha256 == Classifier(second, "c").sha256


def test_gradients_reach_the_images_through_a_frozen_classifier() -> None:
    classifier = fold_batch_norm(Classifier(trained_like(8), "c").eval()).requires_grad_(False)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    classifier(images).logsumexp(dim=1).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_images_are_normalised_inside() -> None:
    probe = Classifier(nn.Identity(), "probe", (0.5, 0.4, 0.3), (0.1, 0.2, 0.4))
    images = torch.rand(1, 3, 2, 2)
    wanted = torch.stack([(images[0, 0] - 0.5) / 0.1, (images[0, 1] - 0.4) / 0.2, (images[0, 2] - 0.3) / 0.4])[None]
    torch.testing.assert_close(probe(images), wanted)
    assert not probe.state_dict()


@pytest.mark.parametrize("depth", [0, 2, 10, 21])
def test_depths_that_do_not_exist(depth: int) -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        CifarResNet(depth)
    with pytest.raises(ValueError, match="3n \\+ 2, such as 5, 11, 29"):
        ThinVgg(depth)


def test_depth_counts_the_layers_with_weights() -> None:
    for model in (CifarResNet(20, width=4), ThinVgg(20, width=4)):
        layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert len(layers) == 20
        assert model(torch.rand(2, 3, 16, 16)).shape == (2, 10)


# What a user may get wrong: each one line, with the cure.


def refusal(spec: str, kind: type[UserError], root: Path | str = "data") -> str:
    with pytest.raises(kind) as caught:
        load_classifier(spec, root)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def test_unknown_names_give_the_nearest(tmp_path: Path) -> None:
    assert "did you mean 'cifar10_resnet20'?" in refusal("cifar10_resnet21", ConfigError)
    assert "did you mean 'resnet18'?" in refusal("timm:resnett18", ConfigError)
    assert "did you mean 'resnet18." in refusal("timm:resnet18.a1_in1kk", ConfigError)
    assert "no trained weights" in refusal("timm:beit3_giant_patch14_224", ConfigError)
    assert "did you mean 'squeezenet1_0'?" in refusal("torchvision:squeezenet10", ConfigError)
    assert "is not known" in refusal("torchvision:fcn_resnet50", ConfigError)  # a segmenter, not a classifier
    assert "classifier" in refusal("tim:resnet18", ConfigError)
    assert "holds no MANIFEST.json" in refusal(str(tmp_path), ArtifactError)


def test_missing_weights_name_the_file_and_the_cure(tmp_path: Path) -> None:
    message = refusal("cifar10_resnet20", DataError, tmp_path)
    assert str(tmp_path / "weights" / "cifar10_resnet20.safetensors") in message
    assert "$MAEP_DATA" in message
    assert "maep classifier train" in message


def test_weights_that_are_damaged_or_of_another_model(tmp_path: Path) -> None:
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
        "lacks 'linear.bias'": {name: t for name, t in good.items() if name != "linear.bias"},
        "'layer1.3": trained_like(26).state_dict(),  # deeper: it has all that a ResNet-20 needs, and more
        "lacks": {"fc.weight": torch.zeros(2)},
        "size mismatch": good | {"linear.weight": torch.zeros(100, 64), "linear.bias": torch.zeros(100)},
        "NaN": good | {"linear.bias": torch.full((10,), torch.nan)},
    }
    for message, weights in foreign.items():
        save_file(weights, path)
        assert message in refusal("cifar10_resnet20", DataError, tmp_path)


def test_no_network_is_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens on the discard port
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for spec in ("timm:test_resnet", "torchvision:squeezenet1_1"):
        message = refusal(spec, UnavailableError)
        assert spec in message
        assert "network" in message


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.usefixtures("importable")
def test_a_model_by_import_path() -> None:
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


def test_identity_of_an_imported_model_is_of_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same weights (none), same structure, another `forward`, be it in the module that is named or in one it uses."""
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
        ("no_such_module_here:probe", "install it or set PYTHONPATH"),
        ("importable_but_broken:probe", "broken at import on two lines"),
        ("importable_classifiers:prob", "did you mean 'probe'"),
        ("importable_classifiers:no_model", "gave a int, not a torch nn.Module"),
        ("importable_classifiers:NUMBER", "NUMBER is a int"),
        ("importable_classifiers:fails", "FileNotFoundError: no weights anywhere"),
        ("importable_classifiers:wants_depth", "missing 1 required positional argument"),
        ("importable_classifiers", "is written import:package.module:factory"),
        (":probe", "is written import:package.module:factory"),
        ("importable_classifiers:", "is written import:package.module:factory"),
    ],
)
def test_import_paths_that_give_no_model(path: str, message: str) -> None:
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


def test_a_classifier_from_its_folder(tmp_path: Path) -> None:
    model = write(tmp_path / "c")
    loaded = load_classifier(str(tmp_path / "c"))
    assert (loaded.name, loaded.classes) == ("digits_resnet8", ("a", "b", "c"))
    assert loaded.sha256 == Classifier(model, "any", CONFIG["mean"], CONFIG["std"]).sha256  # type: ignore[arg-type]
    images = torch.rand(4, 3, 8, 8)
    wanted = model((images - torch.tensor(CONFIG["mean"]).view(3, 1, 1)) / torch.tensor(CONFIG["std"]).view(3, 1, 1))
    torch.testing.assert_close(loaded(images), wanted, rtol=1e-4, atol=1e-5)


def test_the_normalisation_of_a_folder_is_part_of_its_identity(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", std=[0.2, 0.3, 0.5])
    write(tmp_path / "c", name="renamed")
    a, b, c = (load_classifier(str(tmp_path / name)).sha256 for name in "abc")
    assert a != b
    assert a == c


def test_a_folder_of_another_family(tmp_path: Path) -> None:
    model = trained_like(8, "vgg", 4)
    shape = {"family": "vgg", "depth": 8, "num_classes": 10, "width": 4}
    artifact.write(tmp_path / "c", "classifier", CONFIG | {"model": shape}, model.state_dict(), "card")
    loaded = load_classifier(str(tmp_path / "c"))
    assert isinstance(loaded.model, ThinVgg)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())
    images = torch.rand(4, 3, 32, 32)
    wanted = Classifier(model, "plain", CONFIG["mean"], CONFIG["std"])(images)  # type: ignore[arg-type]
    torch.testing.assert_close(loaded(images), wanted, rtol=1e-4, atol=1e-5)


def test_folders_that_hold_no_sound_classifier(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "purifier"}, "holds a purifier, not a classifier"),
        ({"model": {"depth": 9, "num_classes": 3, "width": 4}}, "6n \\+ 2"),
        ({"model": {"depht": 8}}, "depht"),
        ({"model": {"family": "vgk", "depth": 8}}, "family: 'vgk' is not known: did you mean 'vgg'"),
        ({"model": {"family": "vgg", "depth": 9}}, "3n \\+ 2"),
        ({"model": {"depth": 8, "num_classes": 4, "width": 4}}, "do not fit the configuration"),
        ({"mean": None}, "does not describe a classifier"),
        ({"model": None}, "does not describe a classifier"),
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
    assert "truncated" in refusal(str(folder), ArtifactError)
