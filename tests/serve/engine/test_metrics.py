"""A replica's own metrics: every request, stage and batch, by version, and no series that grow without bound."""

from __future__ import annotations

import dataclasses

import torch
from starlette.testclient import TestClient

from maep_serve.api import create_api
from maep_serve.engine.metrics import Metrics
from maep_serve.engine.service import Service
from maep_serve.engine.suspicion import Calibration

PNG = {"content-type": "image/png"}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_requests_stages_and_batches_are_counted_by_version(config, models, png):
    service = Service(config, models)
    metrics, version = service.metrics, models.version
    with TestClient(create_api(service)) as client:
        assert value(metrics, "maep_version", version=version) == 1
        client.post("/v1/purify", content=png(), headers=PNG)
        client.post("/v1/purify", content=png(150, 290), headers=PNG)
        client.post("/v1/purify", content=b"nothing", headers=PNG)
        client.get("/a/path/that/somebody/thought/of")
    for status, count in (("200", 2), ("400", 1)):
        assert value(metrics, "maep_requests_total", route="/v1/purify", status=status, version=version) == count
    assert value(metrics, "maep_requests_total", route="none") == 1
    assert value(metrics, "maep_request_seconds_count", route="/v1/purify") == 3
    for stage in ("queue", "decode", "encode"):
        assert value(metrics, "maep_stage_seconds_count", stage=stage, version=version) == 2
        assert value(metrics, "maep_stage_seconds_sum", stage=stage, version=version) >= 0
    num_images = value(metrics, "maep_batch_size_sum", model="purifier")
    assert num_images == value(metrics, "maep_stage_seconds_count", stage="forward") > 2  # the larger one in tiles
    assert value(metrics, "maep_stage_seconds_count", stage="batch_wait") == num_images


def test_suspicion_scores_and_suspected_images_are_counted(config, models, png):
    classifier = models.classifier.sha256
    known = Calibration(models.purifier_sha256, classifier, "none", "0", (16, 16), (0.0,) * 100, ())
    service = Service(config, dataclasses.replace(models, calibration=known))
    with TestClient(create_api(service)) as client:
        answer = client.post("/v1/classify", content=png(), headers=PNG).json()
        client.post("/v1/classify", content=png(20, 20), headers=PNG)
    assert answer["suspicion"]["suspected"] is True
    assert value(service.metrics, "maep_suspected_total") == 1
    assert value(service.metrics, "maep_scored_total") == value(service.metrics, "maep_suspicion_count") == 1
    score = value(service.metrics, "maep_suspicion_sum")
    assert round(score, 6) == answer["suspicion"]["score"] == round(100 / 101, 6)


def test_a_new_version_has_metrics_of_its_own(config, models, png):
    service = Service(config, models)
    service.use(dataclasses.replace(models, purifier_sha256="f" * 64))
    assert value(service.metrics, "maep_version", version=models.version) == 0
    assert value(service.metrics, "maep_version", version="f" * 12) == 1
    with TestClient(create_api(service)) as client:
        client.post("/v1/purify", content=png(), headers=PNG)
    assert value(service.metrics, "maep_requests_total", version="f" * 12) == 1


def test_a_request_that_began_before_a_new_version_counts_for_the_old_one(config, models, png):
    service = Service(config, models)
    purify = service.engine.purify

    async def changes_over(pixels: torch.Tensor) -> torch.Tensor:
        service.use(dataclasses.replace(models, purifier_sha256="f" * 64))
        return await purify(pixels)

    service.engine.purify = changes_over
    with TestClient(create_api(service)) as client:
        answer = client.post("/v1/purify", content=png(), headers=PNG)
    assert answer.headers["x-maep-purifier"] == models.purifier_sha256
    for stage in ("decode", "encode"):
        assert value(service.metrics, "maep_stage_seconds_count", stage=stage, version=models.version) == 1
        assert value(service.metrics, "maep_stage_seconds_count", stage=stage, version="f" * 12) == 0


def test_only_the_served_version_and_the_one_before_it_are_kept():
    metrics = Metrics()
    for version, kept in (("a", {"a"}), ("b", {"a", "b"}), ("a", {"a", "b"}), ("c", {"a", "c"}), ("d", {"c", "d"})):
        metrics.serve(version)
        metrics.stage(version, "decode", 0.1)
        samples = [sample for family in metrics.registry.collect() for sample in family.samples]
        assert {sample.labels["version"] for sample in samples} == kept
        assert value(metrics, "maep_version") == value(metrics, "maep_version", version=version) == 1
