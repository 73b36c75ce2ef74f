"""Attacked images on disk: within the budget in 8 bits, made once, verified."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maep.attacks.config import AttackConfig
from maep.data import adversarial, lists
from maep.data.datasets import DataConfig, load
from maep.data.image_set import ImageSet
from maep.errors import DataError
from maep.models.classifiers import Classifier

FGSM = AttackConfig("fgsm", 8 / 255, 1)


@pytest.fixture(scope="module")
def image_list() -> lists.ImageList:
    whole = lists.named("digits-dev")
    return lists.make("first", whole.dataset, whole.split, whole.indices[:130])


@pytest.fixture(scope="module")
def digits(image_list: lists.ImageList) -> ImageSet:
    return lists.pick(load(DataConfig("digits"), "dev"), image_list)


@pytest.mark.parametrize("eps", [8 / 255, 2 / 255, 2.6 / 255, 0.5 / 255])
def test_rounding_keeps_the_budget(eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(0, 256, (4, 3, 8, 8), generator=generator).float() / 255
    attacked = (original + eps * (2 * torch.rand(original.shape, generator=generator) - 1)).clamp(0, 1)
    pixels = adversarial.as_tensor(adversarial.round_to_budget(attacked, original, eps).numpy())
    assert (pixels - original).abs().max() <= eps + 1e-6
    on_grid = adversarial.round_to_budget((original + 8 / 255).clamp(0, 1), original, 8 / 255)
    assert torch.allclose(adversarial.as_tensor(on_grid.numpy()), (original + 8 / 255).clamp(0, 1), atol=1e-6)


def test_made_once_and_read_back(
    classifier: Classifier, digits: ImageSet, image_list: lists.ImageList, tmp_path: Path
) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = classifier.register_forward_pre_hook(count)
    made = [
        adversarial.attacked_images(classifier, classifier.sha256, digits, image_list, FGSM, seed, str(tmp_path))
        for seed in (0, 0, 1)
    ]
    handle.remove()
    assert calls == 2 * 2  # two shards for each of two seeds
    assert (made[0] == made[1]).all()
    assert made[0].shape == (130, 16, 16, 3)
    assert len(list((tmp_path / "adversarial").iterdir())) == 2


@pytest.mark.parametrize(
    ("config", "passes"),
    [
        (FGSM, 1),
        (AttackConfig("pgd", 8 / 255, 3), 4),
        (AttackConfig("apgd-ce", 8 / 255, 5), 6),
    ],
    ids=["fgsm", "pgd", "apgd"],
)
def test_what_a_set_took_is_kept_beside_it(
    classifier: Classifier,
    digits: ImageSet,
    image_list: lists.ImageList,
    tmp_path: Path,
    config: AttackConfig,
    passes: int,
) -> None:
    arguments = (classifier, classifier.sha256, digits, image_list, config, 0, str(tmp_path))
    made = adversarial.attacked_images(*arguments)
    wanted = adversarial.recipe(classifier.sha256, digits, image_list, config, 0)
    folder = adversarial.set_folder(adversarial.cache_folder(str(tmp_path)), wanted)
    cost = adversarial.cost(folder, wanted)
    assert cost is not None
    assert cost.forward_passes == 130 * passes
    assert cost.seconds > 0
    (folder / "cost-00001.json").unlink()  # as in a set from before costs were kept
    assert adversarial.cost(folder, wanted) is None
    assert (adversarial.attacked_images(*arguments) == made).all()


@pytest.mark.parametrize("damage", ["tampered", "missing", "manifest"])
def test_damage_is_found_and_named(
    classifier: Classifier, digits: ImageSet, image_list: lists.ImageList, tmp_path: Path, damage: str
) -> None:
    arguments = (classifier, classifier.sha256, digits, image_list, FGSM, 0, str(tmp_path))
    adversarial.attacked_images(*arguments)
    (folder,) = (tmp_path / "adversarial").iterdir()
    shard = folder / "images-00001.safetensors"
    if damage == "tampered":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    elif damage == "missing":
        shard.unlink()
    else:
        manifest = folder / adversarial.MANIFEST
        manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(DataError, match=r"delete .* and they are made again"):
        adversarial.attacked_images(*arguments)
