"""Every route, in this process: responses, readiness, the playground, and what the page uses."""

from __future__ import annotations

import base64
import dataclasses
import gc
import io

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from maep_serve import images
from maep_serve.api import create_api
from maep_serve.engine.service import Service

PNG = {"content-type": "image/png"}


def test_purify_equals_the_offline_purifier_bit_for_bit(client, models, png, pixels_of, offline):
    for seed in range(4):
        data = png(seed=seed)
        response = client.post("/v1/purify", content=data, headers=PNG)
        assert response.status_code == 200
        assert response.headers["content-type"] == "image/png"
        assert response.headers["x-maep-purifier"] == models.purifier_sha256
        assert torch.equal(pixels_of(response.content), offline(models, data))
        assert not torch.equal(pixels_of(response.content), pixels_of(data))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 16), (50, 21), (150, 290)])
def test_any_size_comes_back_at_that_size(client, png, height, width, pixels_of):
    response = client.post("/v1/purify", content=png(height, width), headers=PNG)
    assert response.status_code == 200
    assert pixels_of(response.content).shape == (1, 3, height, width)


def test_jpeg_is_accepted(client, models, picture, pixels_of, offline):
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG")
    response = client.post("/v1/purify", content=buffer.getvalue(), headers={"content-type": "image/jpeg; q=1"})
    assert torch.equal(pixels_of(response.content), offline(models, buffer.getvalue()))


def test_classify_gives_the_best_classes_before_and_after(client, models, png, pixels_of, offline):
    data = png(seed=5)
    body = client.post("/v1/classify?top_k=3", content=data, headers=PNG).json()
    with torch.inference_mode():
        before = models.classifier(images.to_float(pixels_of(data)))[0].softmax(0)
        after = models.classifier(images.to_float(offline(models, data)))[0].softmax(0)
    for given, expected in ((body["before"], before), (body["after"], after)):
        assert [row["index"] for row in given] == expected.topk(3).indices.tolist()
        assert [row["class"] for row in given] == [str(row["index"]) for row in given]
        np.testing.assert_allclose([row["probability"] for row in given], expected.topk(3).values, atol=1e-5)
    assert body["purifier"] == models.purifier_sha256
    assert body["classifier"] == "tiny"
    assert body["changed"] == (int(before.argmax()) != int(after.argmax()))
    assert len(client.post("/v1/classify?top_k=1000", content=data, headers=PNG).json()["before"]) == 10


def test_an_endpoint_without_a_classifier_reports_that(config, models, png, is_problem):
    bare = dataclasses.replace(models, classifier=None, classifier_name=None, classes=())
    service = Service(dataclasses.replace(config, classifier=None), bare)
    with TestClient(create_api(service)) as client:
        assert is_problem(client.post("/v1/classify", content=png(), headers=PNG), "no-classifier")
        assert is_problem(client.post("/v1/attack", content=png(), headers=PNG), "not-found")
        assert client.post("/v1/purify", content=png(), headers=PNG).status_code == 200
        assert client.get("/v1/info").json()["playground"] is False


def test_a_size_the_classifier_cannot_take_is_the_callers_problem(config, models, png, is_problem, caplog):
    fixed = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    service = Service(config, dataclasses.replace(models, classifier=fixed))
    with TestClient(create_api(service)) as client:
        assert client.post("/v1/classify", content=png(), headers=PNG).status_code == 200
        assert is_problem(client.post("/v1/classify", content=png(20, 20), headers=PNG), "unsupported-size")
        gc.collect()  # asyncio logs an error that was never retrieved when its task is collected
    assert "never retrieved" not in caplog.text


def test_a_classifier_that_gets_no_memory_is_not_the_callers_problem(config, models, png, is_problem):
    class Greedy(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.zeros(10**15 if batch.shape[-1] == 20 else (len(batch), 10))

    service = Service(config, dataclasses.replace(models, classifier=Greedy()))
    with TestClient(create_api(service), raise_server_exceptions=False) as client:
        assert is_problem(client.post("/v1/classify", content=png(20, 20), headers=PNG), "internal-error")


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_the_playground_attacks_within_the_budget(client, models, png, name, pixels_of):
    data = png(seed=2)
    body = client.post(f"/v1/attack?attack={name}&eps=8&steps=5", content=data, headers=PNG).json()
    pictures = {key: pixels_of(base64.b64decode(text)) for key, text in body["images"].items()}
    assert torch.equal(pictures["clean"], pixels_of(data))
    change = (pictures["attacked"].int() - pictures["clean"].int()).abs()
    assert 0 < change.max() <= 8
    with torch.inference_mode():
        expected = images.to_uint8(models.purifier(images.to_float(pictures["attacked"])))
    assert torch.equal(pictures["purified"], expected)
    assert body["threat"] == "oblivious"
    top = body["top"]
    assert body["label"] == top["clean"][0]["index"]
    confidence = {row["index"]: row["probability"] for row in top["attacked"]}
    assert confidence.get(body["label"], 0) < top["clean"][0]["probability"]
    assert {len(rows) for rows in top.values()} == {5}


def test_the_playground_is_for_loopback_only(config, models, png, is_problem):
    with pytest.raises(ValueError, match="playground"):
        dataclasses.replace(config, host="0.0.0.0", playground=True)
    for off in (dataclasses.replace(config, host="0.0.0.0"), dataclasses.replace(config, playground=False)):
        with TestClient(create_api(Service(off, models))) as client:
            assert is_problem(client.post("/v1/attack", content=png(), headers=PNG), "not-found")
            assert client.get("/v1/info").json()["playground"] is False


def test_ready_only_when_the_model_is(config, models, png, is_problem):
    service = Service(config)
    with TestClient(create_api(service)) as client:
        assert client.get("/healthz").status_code == 200
        for response in (client.get("/readyz"), client.post("/v1/purify", content=png(), headers=PNG)):
            assert is_problem(response, "not-ready")
            assert int(response.headers["retry-after"]) > 0
    service = Service(config, models)
    with TestClient(create_api(service)) as client:
        assert client.get("/readyz").json() == {"status": "ready", "purifier": models.purifier_sha256}


def test_the_wrong_method_is_a_problem(client, is_problem):
    response = client.get("/v1/purify")
    assert is_problem(response, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_request_ids(client):
    assert client.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = client.get("/healthz", headers={"x-request-id": "not ok!"}).headers["x-request-id"]
    assert len(made) == 32
    assert client.get("/healthz").headers["x-request-id"] != made


def test_the_page_loads_nothing_external(client):
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "oblivious" in response.text
    for outside in ("https://", "//cdn", "@import"):
        assert outside not in response.text


def test_samples_are_eight_pictures_of_the_data_set(client, is_problem, pixels_of):
    samples = client.get("/v1/samples").json()
    assert [sample["id"] for sample in samples] == list(range(8))
    assert [sample["name"] for sample in samples] == list("01234567")
    for sample in samples:
        response = client.get(f"/v1/samples/{sample['id']}")
        assert pixels_of(response.content).shape == (1, 3, 16, 16)
    assert is_problem(client.get("/v1/samples/8"), "not-found")
    assert is_problem(client.get("/v1/samples/x"), "invalid-parameter")


def test_openapi_names_the_routes_and_their_problems(client):
    document = client.get("/openapi.json").json()
    assert {"/v1/purify", "/v1/classify", "/v1/attack", "/healthz", "/readyz", "/v1/info"} <= set(document["paths"])
    purify = document["paths"]["/v1/purify"]["post"]
    taken = {"image/png", "image/jpeg", "image/webp", "application/octet-stream"}
    assert set(purify["requestBody"]["content"]) == taken
    assert {parameter["name"] for parameter in purify["parameters"]} == {"x-shape", "x-dtype"}
    assert set(purify["responses"]["200"]["content"]) == taken - {"image/webp"}
    assert {"400", "408", "411", "413", "415", "422", "429", "503", "504"} <= set(purify["responses"])
    assert "401" in purify["responses"]
    assert {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{model}/infer"} <= set(document["paths"])
