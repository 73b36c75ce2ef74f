"""The Open Inference Protocol, with tritonclient against a real HTTP server, and the problems of invalid requests."""

from __future__ import annotations

import json
import socket
import threading
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import uvicorn

from maep_serve.api import create_api
from maep_serve.engine.service import Service
from maep_serve.http import oip
from maep_serve.http.tokens import Tokens, digests_in
from maep_serve.problems import Problem

INFER = "/v2/models/purifier/infer"


@pytest.fixture(scope="module")
def address(config, models) -> Iterator[str]:
    """HOST:PORT of the application behind uvicorn, which requires the token `secret`."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = create_api(Service(config, models), Tokens(digests_in("secret")))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def triton(address):
    """The Triton client, and its module."""
    module = pytest.importorskip("tritonclient.http")
    client = module.InferenceServerClient(address, network_timeout=60, connection_timeout=60)
    try:
        yield client, module
    finally:
        client.close()


# The client writes its own headers into what it is given: each call gets a copy
AUTH = {"Authorization": "Bearer secret"}


def offline(models, array_BHWC: np.ndarray) -> np.ndarray:
    """The output of the purifier in this process, in the input's dtype."""
    import torch

    from maep_serve import images

    with torch.inference_mode():
        given = images.to_float(torch.from_numpy(array_BHWC).permute(0, 3, 1, 2).contiguous())
        purified = models.purifier(given)
    answer = images.to_uint8(purified) if array_BHWC.dtype == np.uint8 else purified
    return answer.permute(0, 2, 3, 1).numpy()


def test_health_and_metadata(triton, models):
    client, module = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("purifier")
    assert client.is_model_ready("purifier", models.purifier_sha256[:12])
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("purifier", "1")
    assert client.get_server_metadata(headers=dict(AUTH))["extensions"] == ["binary_tensor_data"]
    told = client.get_model_metadata("purifier", headers=dict(AUTH))
    assert told["versions"] == [models.purifier_sha256[:12]]
    assert told["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert told["outputs"] == [{"name": "purified", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    with pytest.raises(module.InferenceServerException, match="unauthorized"):
        client.get_model_metadata("purifier")
    with pytest.raises(module.InferenceServerException, match="not-found"):
        client.get_model_metadata("other", headers=dict(AUTH))


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
@pytest.mark.parametrize("binary", [True, False])
def test_infer_equals_the_offline_purifier_bit_for_bit(triton, models, picture, datatype, binary):
    client, module = triton
    pictures = np.stack([picture(16, 16, seed) for seed in range(5)])
    given = pictures if datatype == "UINT8" else (pictures / np.float32(255)).astype("f4")
    tensor = module.InferInput("images", list(given.shape), datatype)
    tensor.set_data_from_numpy(given, binary_data=binary)
    wanted = [module.InferRequestedOutput("purified", binary_data=binary)]
    for outputs in (wanted, None):
        answer = client.infer("purifier", [tensor], outputs=outputs, request_id="r1", headers=dict(AUTH))
        assert answer.get_response()["id"] == "r1"
        assert answer.get_response()["model_version"] == models.purifier_sha256[:12]
        purified = answer.as_numpy("purified")
        assert purified.dtype == given.dtype
        np.testing.assert_array_equal(purified, offline(models, given))


def test_a_bad_request_raises_the_triton_clients_exception(triton):
    client, module = triton
    tensor = module.InferInput("images", [1, 2, 2, 3], "FP32")
    tensor.set_data_from_numpy(np.full((1, 2, 2, 3), np.nan, "f4"))
    with pytest.raises(module.InferenceServerException, match="invalid-tensor") as caught:
        client.infer("purifier", [tensor], headers=dict(AUTH))
    assert caught.value.status() == "422"


def body(**changes: object) -> dict:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": list(range(12)), **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def test_a_single_image_and_nested_lists(client, models):
    flat = client.post(INFER, json=body(shape=[2, 2, 3])).json()["outputs"][0]
    nested = client.post(INFER, json=body(data=np.arange(12).reshape(1, 2, 2, 3).tolist())).json()["outputs"][0]
    assert flat["shape"] == [2, 2, 3]
    assert nested["shape"] == [1, 2, 2, 3]
    assert flat["data"] == nested["data"]
    assert flat["datatype"] == "UINT8"
    versioned = f"/v2/models/purifier/versions/{models.purifier_sha256[:12]}/infer"
    assert client.post(versioned, json=body()).json()["outputs"] == [nested]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", "invalid-request"),
        (b"{", "invalid-request"),
        (b"[" * 100_000, "invalid-request"),
        (b"[]", "invalid-request"),
        (b"\xff\xfe\x00", "invalid-request"),
        ({}, "invalid-request"),
        ({"inputs": []}, "invalid-request"),
        ({"inputs": [1]}, "invalid-request"),
        ({"inputs": body()["inputs"] * 2}, "invalid-request"),
        (body(name="pixels"), "invalid-request"),
        (body(data=None), "invalid-request"),
        (body(data="AAAA"), "invalid-request"),
        (body(parameters=[]), "invalid-request"),
        (body(parameters={"binary_data_size": 12}), "invalid-request"),
        (body(data=None, parameters={"binary_data_size": -12}), "invalid-request"),
        (body(data=None, parameters={"binary_data_size": "12"}), "invalid-request"),
        ({**body(), "outputs": [{"name": "other"}]}, "invalid-request"),
        ({**body(), "outputs": "purified"}, "invalid-request"),
        (body(shape=None), "invalid-tensor"),
        (body(shape=[2, 2]), "invalid-tensor"),
        (body(shape=[1, 2, -2, 3]), "invalid-tensor"),
        (body(shape=[1, 2.0, 2, 3]), "invalid-tensor"),
        (body(shape=[1, True, 12, 1]), "invalid-tensor"),
        (body(shape=[2, 2, 2, 3]), "invalid-tensor"),
        (body(shape=[1, 3, 2, 2]), "invalid-tensor"),
        (body(shape=[257, 1, 1, 3], data=[0] * 257 * 3), "invalid-tensor"),
        (body(shape=[1, 65535, 65535, 3]), "too-many-pixels"),
        (body(datatype="FP64"), "invalid-tensor"),
        (body(datatype=None), "invalid-tensor"),
        (body(datatype=[]), "invalid-tensor"),
        (body(datatype={}), "invalid-tensor"),
        (body(data=[256] * 12), "invalid-tensor"),
        (body(data=[-1] * 12), "invalid-tensor"),
        (body(data=[0.5] * 12), "invalid-tensor"),
        (body(data=["a"] * 12), "invalid-tensor"),
        (body(data=[[1, 2], [3]]), "invalid-tensor"),
        (body(data=[None] * 12), "invalid-tensor"),
        (body(data=[10**30] * 12), "invalid-tensor"),
        (body(data=[True] * 12), "invalid-tensor"),
        (body(data=[[[[1, 2, 3]], [[1, 2], [3]]]]), "invalid-tensor"),
        (body(data=json.loads("[" * 60 + "1" + "]" * 60)), "invalid-tensor"),
        (body(data=json.loads("[" * 900 + "1" + "]" * 900)), "invalid-tensor"),
        (body(datatype="FP32", data=["0.5"] * 12), "invalid-tensor"),
        (body(datatype="FP32", data=[10**400] * 12), "invalid-tensor"),
        (body(datatype="FP32", data=[1e300] * 12), "invalid-tensor"),
        (body(datatype="FP32", data=[float("nan")] * 12), "invalid-tensor"),
    ],
)
def test_invalid_input_has_a_stable_code(client, is_problem, sent, code):
    text = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    answer = client.post(INFER, content=text, headers={"content-type": "application/json"})
    assert is_problem(answer, code)
    assert answer.json()["error"].startswith(f"{code}: ")


def test_strings_among_numbers_use_no_extra_memory():
    """As an array of strings, each as long as the longest, they would take 2 GB."""
    sent = json.dumps(body(data=["x" * 100_000, *[""] * 5_000])).encode()
    tracemalloc.start()
    try:
        with pytest.raises(Problem, match="data"):
            oip.parse(sent, None)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("wrong", [{"inputs": [{}] * 100_000}, body(shape=["x"] * 200_000), body(parameters=["x"] * 9)])
def test_many_validation_errors_use_bounded_memory(wrong):
    sent = json.dumps(wrong).encode()
    as_json = 60 * len(sent)  # as Python objects
    tracemalloc.start()
    try:
        with pytest.raises(Problem):
            oip.parse(sent, None)
        assert tracemalloc.get_traced_memory()[1] < as_json
    finally:
        tracemalloc.stop()


def test_queued_json_tensors_use_no_more_memory_than_their_text():
    """As Python objects, they would take twenty times as much for each queued request."""
    sent = json.dumps(body(datatype="FP32", shape=[100, 100, 3], data=[0.12345] * 30_000)).encode()
    tracemalloc.start()
    try:
        kept = oip.parse(sent, None)
        assert tracemalloc.get_traced_memory()[0] < len(sent)
    finally:
        tracemalloc.stop()
    assert len(kept[1]) == 4 * 30_000


@pytest.mark.parametrize("length", ["0", "-1", "many", "1e3", "99999", "9" * 5000])
def test_a_wrong_header_length_is_refused(client, is_problem, length):
    answer = client.post(INFER, content=json.dumps(body()), headers={"inference-header-content-length": length})
    assert is_problem(answer, "invalid-request")


def test_large_json_tensors_are_refused(config, models, is_problem):
    import dataclasses

    from starlette.testclient import TestClient

    service = Service(dataclasses.replace(config, max_body_bytes=4 * 2**20), models)
    with TestClient(create_api(service)) as client:
        answer = client.post(INFER, content=b" " * (2**20 + 1))
        assert is_problem(answer, "body-too-large")
        assert "binary data" in answer.json()["detail"]


def test_the_wrong_model_or_encoding(client, is_problem):
    assert is_problem(client.post("/v2/models/other/infer", json=body()), "not-found")
    assert is_problem(client.post("/v2/models/purifier/versions/1/infer", json=body()), "not-found")
    zipped = client.post(INFER, content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert is_problem(zipped, "unsupported-media-type")
