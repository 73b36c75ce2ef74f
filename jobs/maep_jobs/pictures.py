"""A picture of what a purifier does to attacked images of an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from maep import seeding
from maep.artifact import Artifact
from maep.attacks.config import AttackConfig
from maep.attacks.run import attack
from maep.data.datasets import data_root, load
from maep.data.image_set import to_uint8
from maep.data.lists import named, pick
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.pictures import strip
from maep.models.build import load_purifier_artifact
from maep.models.classifiers import load_classifier


def write_strip(evaluation: EvaluateConfig, purifier: Artifact, path: Path, count: int = 6) -> Path:
    """Writes a PNG: the first image of each of `count` classes, attacked by PGD-20 on the last classifier, purified."""
    image_list = named(evaluation.images)
    images = pick(load(evaluation.data, image_list.split), image_list)
    first = [int(np.flatnonzero(images.labels == label)[0]) for label in np.unique(images.labels)[:count]]
    chosen = images.select(first)
    classifier = load_classifier(evaluation.classifiers[-1], data_root(evaluation.data))
    clean, labels = chosen.batch(range(len(chosen)))
    keys = seeding.mix(evaluation.seed, torch.from_numpy(chosen.indices))
    attacked = attack(classifier, clean, labels, AttackConfig("pgd", evaluation.oblivious_eps, 20), keys)
    pixels = chosen.pixels(range(len(chosen)))
    model = load_purifier_artifact(purifier)
    picture = strip(classifier, model, pixels, to_uint8(attacked).numpy(), labels.tolist(), chosen.classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path
