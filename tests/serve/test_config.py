"""The endpoint's configuration."""

from __future__ import annotations

import importlib.resources

import pytest

from maep import config
from maep.errors import ConfigError
from maep_serve.config import ServeConfig, is_loopback


def test_the_local_configuration_loads_and_round_trips(tmp_path):
    with importlib.resources.as_file(importlib.resources.files("maep_serve") / "configs" / "local.yaml") as path:
        built = config.load(ServeConfig, path, ["--port", "8123", "--data.name", "cifar10"])
    assert built.port == 8123
    assert built.data is not None
    assert built.host == "127.0.0.1"
    file = tmp_path / "serve.yaml"
    file.write_text(config.to_yaml(built))
    assert config.load(ServeConfig, file) == built


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", "0"),
        ("port", "65536"),
        ("max_batch_size", "0"),
        ("request_timeout_s", "0"),
        ("num_threads", "0"),
        ("batch_wait_ms", "-1"),
        ("max_pixel", "5"),
    ],
)
def test_values_out_of_range_are_named(key, value):
    with pytest.raises(ConfigError, match=key):
        config.build(ServeConfig, config.apply_overrides({"model": "m"}, [f"--{key}", value]))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.8.8", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected
