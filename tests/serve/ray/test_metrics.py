"""What the endpoint tells of itself: each request, each stage, each batch, by version; and nothing that grows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from starlette.testclient import TestClient

from maep_serve.engine.service import Service
from maep_serve.engine.suspicion import Calibration
from maep_serve.http.api import create_api
from maep_serve.ray.metrics import HISTOGRAM_PARTS, INSTRUMENTS, Meter, Summary

PNG = {"content-type": "image/png"}


class Kept:
    """A sink that keeps what it is given, and holds it to the instruments' tags."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, dict[str, str]]] = []
        self._tags = {each.name: set(each.tags) for each in INSTRUMENTS}

    def __call__(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        assert set(tags) == self._tags[name]
        self.seen.append((name, value, dict(tags)))

    def values(self, name: str, **tags: str) -> list[float]:
        return [value for n, value, t in self.seen if n == name and tags.items() <= t.items()]


def test_requests_stages_and_batches_by_version(config, models, png):
    kept = Kept()
    version = models.purifier_sha256[:12]
    with TestClient(create_api(Service(config, models, kept))) as client:
        assert kept.values("maep_version", version=version) == [1]
        client.post("/v1/purify", content=png(), headers=PNG)
        client.post("/v1/purify", content=png(150, 290), headers=PNG)
        client.post("/v1/purify", content=b"nothing", headers=PNG)
        client.get("/a/path/that/somebody/thought/of")
    for status, count in (("200", 2), ("400", 1)):
        assert len(kept.values("maep_requests", route="/v1/purify", status=status, version=version)) == count
    assert kept.values("maep_requests", route="none") == [1]
    assert len(kept.values("maep_request_seconds", route="/v1/purify")) == 3
    for stage in ("queue", "decode", "encode"):
        times = kept.values("maep_stage_seconds", stage=stage, version=version)
        assert len(times) == 2
        assert min(times) >= 0
    sizes = kept.values("maep_batch_size", model="purifier")
    assert sum(sizes) == len(kept.values("maep_stage_seconds", stage="forward")) > 2  # the larger one in tiles
    assert len(kept.values("maep_stage_seconds", stage="batch_wait")) == sum(sizes)


def test_suspicion_and_the_share_of_suspected(config, models, png):
    kept = Kept()
    classifier = models.classifier.sha256
    known = Calibration(models.purifier_sha256, classifier, "none", "0", (16, 16), (0.0,) * 100, ())
    service = Service(config, dataclasses.replace(models, calibration=known), kept)
    with TestClient(create_api(service)) as client:
        answer = client.post("/v1/classify", content=png(), headers=PNG).json()
        client.post("/v1/classify", content=png(20, 20), headers=PNG)
    assert answer["suspicion"]["suspected"] is True
    assert kept.values("maep_suspected") == [1]
    assert kept.values("maep_scored") == [1]
    assert round(kept.values("maep_suspicion")[0], 6) == answer["suspicion"]["score"] == round(100 / 101, 6)


def test_a_new_version_has_its_own_figures(config, models, png):
    kept = Kept()
    service = Service(config, models, kept)
    service.use(dataclasses.replace(models, purifier_sha256="f" * 64))
    assert kept.values("maep_version", version=models.purifier_sha256[:12]) == [1, 0]
    assert kept.values("maep_version", version="f" * 12) == [1]
    with TestClient(create_api(service)) as client:
        client.post("/v1/purify", content=png(), headers=PNG)
    assert kept.values("maep_requests", version="f" * 12) == [1]


def test_a_request_that_began_before_a_new_version_counts_for_the_old_one(config, models, png):
    kept = Kept()
    service = Service(config, models, kept)
    purify = service.engine.purify

    async def changes_over(pixels: torch.Tensor) -> torch.Tensor:
        service.use(dataclasses.replace(models, purifier_sha256="f" * 64))
        return await purify(pixels)

    service.engine.purify = changes_over
    with TestClient(create_api(service)) as client:
        answer = client.post("/v1/purify", content=png(), headers=PNG)
    assert answer.headers["x-maep-purifier"] == models.purifier_sha256
    for stage in ("decode", "encode"):
        assert len(kept.values("maep_stage_seconds", stage=stage, version=models.purifier_sha256[:12])) == 1
        assert kept.values("maep_stage_seconds", stage=stage, version="f" * 12) == []


def test_a_summary_says_of_histograms_what_prometheus_asks_for():
    summary = Summary()
    for value in (1.0, 0.0):
        summary.add("maep_version", value, {"version": "a"})
    for value in (1, 2, 3, 200):
        summary.add("maep_batch_size", value, {"version": "a", "model": "purifier"})
    summary.add("maep_batch_size", 4, {"model": "purifier", "version": "b"})
    values = {(name, tags["version"], tags.get("le")): value for name, value, tags in summary.values()}
    of_a = {bound: values["maep_batch_size_bucket", "a", bound] for bound in ("1", "2", "4", "128", "+Inf")}
    assert of_a == {"1": 1, "2": 2, "4": 3, "128": 3, "+Inf": 4}  # a bound belongs to its bucket
    assert (values["maep_batch_size_sum", "a", None], values["maep_batch_size_count", "a", None]) == (206, 4)
    assert values["maep_batch_size_sum", "b", None] == 4
    assert values["maep_version", "a", None] == 0
    assert {name.removeprefix("maep_batch_size") for name, *_ in values} == {*HISTOGRAM_PARTS, "maep_version"}


def test_a_summary_forgets_the_versions_before_the_last():
    summary = Summary()

    def serve(version: str) -> None:
        meter = Meter(summary.add, version)
        meter.serving(True)
        meter.stage("decode", 0.1)

    def told() -> set[str]:
        return {tags["version"] for _, _, tags in summary.values()}

    for version, kept in (("a", {"a"}), ("b", {"a", "b"}), ("a", {"a", "b"}), ("c", {"a", "c"}), ("d", {"c", "d"})):
        serve(version)
        assert told() == kept
