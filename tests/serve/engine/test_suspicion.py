"""The suspicion score: its false-positive rate, its models, and its JSON."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from maep.errors import ConfigError
from maep_serve import images
from maep_serve.api import create_api
from maep_serve.engine import suspicion
from maep_serve.engine.calibration import calibrate
from maep_serve.engine.service import Service
from maep_serve.engine.suspicion import FALSE_POSITIVE_RATE, Calibration

PNG = {"content-type": "image/png"}


def calibration_of(models, unchanged=(0.1, 0.2, 0.3), changed=(0.2,)) -> Calibration:
    classifier = models.classifier.sha256
    return Calibration(
        models.purifier_sha256, classifier, "digits-dev", "0", (16, 16), tuple(unchanged), tuple(changed)
    )


def test_p_values_follow_the_order_of_suspicion(models):
    known = calibration_of(models)
    assert known.num_images == 4
    assert known.p_value(0.05, False) == 1.0
    assert known.p_value(0.25, False) == (1 + 2) / 5
    assert known.p_value(0.9, False) == (1 + 1) / 5
    assert known.p_value(0.1, True) == (1 + 1) / 5
    assert known.p_value(0.9, True) == 1 / 5
    score, suspected = known.judge(0.9, True)
    assert (score, suspected) == (0.8, False)  # of four images, none can stand out by more


def test_false_positive_rate_on_clean_images_holds(models):
    draw = np.random.default_rng(20261126)
    shares = []
    for _ in range(20):
        distances, changes = draw.gamma(2, 0.01, 1200), draw.random(1200) < 0.04
        known = calibration_of(
            models, sorted(distances[:1000][~changes[:1000]]), sorted(distances[:1000][changes[:1000]])
        )
        new = zip(distances[1000:], changes[1000:], strict=True)
        shares.append(np.mean([known.judge(float(d), bool(c))[1] for d, c in new]))
    assert 0.03 < np.mean(shares) <= FALSE_POSITIVE_RATE + 0.005
    assert known.judge(1.0, True)[1]
    assert not known.judge(float(np.median(distances)), False)[1]


def test_distance_is_root_mean_square_in_0_to_1():
    black, grey = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 51, dtype=torch.uint8)
    assert suspicion.distance(black, grey) == pytest.approx(0.2)
    assert suspicion.distance(images.to_float(black), images.to_float(grey)) == pytest.approx(0.2)


def test_calibration_measures_what_classify_reports(config, models, png):
    """The calibrated distances are the ones that /v1/classify reports."""
    pixels = torch.cat([images.decode(png(seed=seed), 10**4) for seed in range(12)])
    known = calibrate(models, pixels, "drawn", "0")
    assert known.num_images == 12
    service = Service(config, dataclasses.replace(models, calibration=known))
    with TestClient(create_api(service)) as client:
        found: dict[bool, list[float]] = {False: [], True: []}
        for seed in range(12):
            answer = client.post("/v1/classify", content=png(seed=seed), headers=PNG).json()
            told = answer["suspicion"]
            assert told["class_changed"] == answer["changed"]
            assert told["score"] == round(1 - known.p_value(told["distance"], told["class_changed"]), 6)
            assert told["suspected"] is False
            assert (told["false_positive_rate"], told["calibrated_on"]) == (FALSE_POSITIVE_RATE, "drawn")
            found[told["class_changed"]].append(told["distance"])
        np.testing.assert_allclose(sorted(found[False]), known.unchanged, atol=2e-6)
        np.testing.assert_allclose(sorted(found[True]), known.changed, atol=2e-6)
        other = client.post("/v1/classify", content=png(20, 20), headers=PNG).json()["suspicion"]
        assert (other["score"], other["suspected"], other["calibrated_on"]) == (None, None, None)
        assert other["distance"] > 0


def test_without_a_calibration_there_is_no_score(client, png):
    told = client.post("/v1/classify", content=png(), headers=PNG).json()["suspicion"]
    assert (told["score"], told["suspected"], told["false_positive_rate"], told["calibrated_on"]) == (None,) * 4
    assert told["distance"] > 0


def test_a_calibration_is_for_its_own_models_only(models, tmp_path):
    known = calibration_of(models)
    file = tmp_path / "calibration.json"
    suspicion.write(known, file)
    assert suspicion.read(file) == known
    assert suspicion.find(known.purifier_sha256, known.classifier_sha256, str(file)) == known
    assert suspicion.find(known.purifier_sha256, known.classifier_sha256) is None
    with pytest.raises(ConfigError, match="calibration: "):
        suspicion.find("0" * 64, known.classifier_sha256, str(file))
    for text in ("{}", "[]", "no", json.dumps({**json.loads(file.read_text()), "unchanged": [2, 1]})):
        file.write_text(text)
        with pytest.raises(ConfigError, match="calibration: "):
            suspicion.read(file)
    with pytest.raises(ConfigError, match="absent"):
        suspicion.read(tmp_path / "absent")


@pytest.mark.shared_data
def test_shipped_calibrations_belong_to_shipped_purifiers(shared_data, monkeypatch):
    from maep.models.classifiers.load import load_classifier
    from maep.tracking.resolve import resolve

    purifiers = {resolve(f"bundled:{name}").sha256 for name in ("cifar10", "cifar10-conv")}
    shipped = suspicion._shipped()
    assert shipped
    assert {known.purifier_sha256 for known in shipped} <= purifiers
    resnet20 = load_classifier("cifar10_resnet20", shared_data).sha256
    known = suspicion.find(resolve("bundled:cifar10").sha256, resnet20)
    assert known is not None
    assert known.images.startswith("cifar10-dev")
    assert known.num_images >= 1000
