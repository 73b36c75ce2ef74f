"""The endpoint's configuration and its defaults."""

from __future__ import annotations

import dataclasses

import pytest

from maep import config
from maep.data.config import DataConfig
from maep.errors import ConfigError
from maep_serve.config import ServeConfig, is_loopback
from maep_serve.engine.loading import class_names
from maep_serve.page.samples import load_samples


def test_a_configuration_round_trips(tmp_path):
    built = config.build(
        ServeConfig, config.apply_overrides({"model": "m"}, ["--port", "8123", "--data.name", "cifar10"])
    )
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
        ("max_pixels_in_flight", "5"),
    ],
)
def test_values_out_of_range_are_named(key, value):
    with pytest.raises(ConfigError, match=key):
        config.build(ServeConfig, config.apply_overrides({"model": "m"}, [f"--{key}", value]))


def test_max_pixels_in_flight_holds_the_largest_image():
    with pytest.raises(ValueError, match="max_pixels_in_flight"):
        ServeConfig("m", max_pixels=100, max_pixels_in_flight=99)
    assert ServeConfig("m", max_pixels=100, max_pixels_in_flight=100).max_pixels == 100


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.8.8", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_addresses(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("own", "data", "count", "expected"),
    [
        (("no", "yes"), "digits", 2, ("no", "yes")),
        ((), "digits", 10, tuple("0123456789")),
        ((), "cifar10", 3, ("0", "1", "2")),
        (("one",), "imagenet", 2, ("0", "1")),
    ],
)
def test_class_names_fall_back_to_the_data_set_then_to_indices(own, data, count, expected):
    assert class_names(own, data, count) == expected


@pytest.mark.parametrize(("size", "data"), [((24, 40), None), ((32, 32), DataConfig(name="cifar10"))])
def test_samples_are_drawn_without_data(tmp_path, size, data):
    samples = load_samples(data and dataclasses.replace(data, root=str(tmp_path)), size)
    assert len(samples) == 8
    assert {tuple(sample.pixels.shape) for sample in samples} == {(1, 3, *size)}
    assert len({sample.pixels.numpy().tobytes() for sample in samples}) == 8


@pytest.mark.shared_data
def test_samples_of_cifar10_are_named_by_their_class(shared_data):
    samples = load_samples(DataConfig(name="cifar10", root=str(shared_data)), (32, 32))
    assert [sample.name for sample in samples][:4] == ["airplane", "automobile", "bird", "cat"]
