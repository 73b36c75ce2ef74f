"""Attacked images on disk: within the budget in 8 bits, made once, verified."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from maep import config
from maep.attacks.config import AttackConfig
from maep.data import lists
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.data.image_set import ImageSet
from maep.errors import ConfigError, DataError
from maep.evaluate import attacked_sets
from maep.evaluate.config import EvaluateConfig
from maep.models.classifiers.load import Classifier

FGSM = AttackConfig("fgsm", 8 / 255, 1)


@pytest.fixture(scope="module")
def image_list() -> lists.ImageList:
    whole = lists.named("digits-dev")
    return lists.make("first", whole.dataset, whole.split, whole.indices[:130])


@pytest.fixture(scope="module")
def digits(image_list: lists.ImageList) -> ImageSet:
    return lists.pick(load(DataConfig("digits"), "dev"), image_list)


def wanted(
    classifier: Classifier,
    images: ImageSet,
    image_list: lists.ImageList,
    cache: Path,
    config: AttackConfig = FGSM,
    seed: int = 0,
) -> attacked_sets.AttackedSet:
    return attacked_sets.AttackedSet(classifier.sha256, None, images, image_list, config, seed, cache)


def test_set_is_made_once_and_read_back(
    classifier: Classifier, digits: ImageSet, image_list: lists.ImageList, tmp_path: Path
) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = classifier.register_forward_pre_hook(count)
    made = [wanted(classifier, digits, image_list, tmp_path, seed=seed).made(classifier) for seed in (0, 0, 1)]
    handle.remove()
    assert calls == 2 * 2  # two shards for each of two seeds
    assert (made[0] == made[1]).all()
    assert made[0].shape == (130, 16, 16, 3)
    assert len(list(tmp_path.iterdir())) == 2
    behind = replace(wanted(classifier, digits, image_list, tmp_path), purifier_sha256="f" * 64)
    assert not behind.is_finished  # another model, another set


@pytest.mark.parametrize(
    ("config", "passes"),
    [
        (FGSM, 1),
        (AttackConfig("pgd", 8 / 255, 3), 4),
        (AttackConfig("apgd-ce", 8 / 255, 5), 6),
    ],
    ids=["fgsm", "pgd", "apgd"],
)
def test_cost_is_stored_beside_the_set(
    classifier: Classifier,
    digits: ImageSet,
    image_list: lists.ImageList,
    tmp_path: Path,
    config: AttackConfig,
    passes: int,
) -> None:
    attacked = wanted(classifier, digits, image_list, tmp_path, config)
    made = attacked.made(classifier)
    cost = attacked.cost()
    assert cost is not None
    assert cost.forward_passes == 130 * passes
    assert cost.seconds > 0
    (attacked.folder / "cost-00001.json").unlink()  # as in a set from before costs were kept
    assert attacked.cost() is None
    assert (attacked.made(classifier) == made).all()


@pytest.mark.parametrize("damage", ["tampered", "missing", "manifest"])
def test_damaged_sets_are_refused(
    classifier: Classifier, digits: ImageSet, image_list: lists.ImageList, tmp_path: Path, damage: str
) -> None:
    attacked = wanted(classifier, digits, image_list, tmp_path)
    attacked.made(classifier)
    shard = attacked.shard_path(1)
    if damage == "tampered":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    elif damage == "missing":
        shard.unlink()
    else:
        manifest = attacked.folder / attacked_sets.MANIFEST
        manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(DataError, match=re.escape(str(attacked.folder))):
        attacked.made(classifier)


@pytest.mark.parametrize("attack", [AttackConfig("pgd", 0.5 / 255), AttackConfig("pgd", 0.5, norm="L2")])
def test_budget_that_8_bit_images_cannot_keep_is_refused(
    attack: AttackConfig, classifier: Classifier, digits: ImageSet, image_list: lists.ImageList, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="eps"):
        wanted(classifier, digits, image_list, tmp_path, attack)
    with pytest.raises(ConfigError, match="oblivious_eps"):
        config.build(EvaluateConfig, {"oblivious_eps": 0.5 / 255, "classifiers": ["x"]})
