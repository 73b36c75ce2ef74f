"""The configurations as `serve deploy` takes them: through Ray Serve's own schema, and built as a cluster would."""

from __future__ import annotations

import importlib
import importlib.resources
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import serve
from ray.serve.schema import HTTPOptionsSchema, LoggingConfig, ServeApplicationSchema, ServeDeploySchema

from maep.errors import ConfigError
from maep_serve.config import ServeConfig

FOLDER = importlib.resources.files("maep_serve") / "configs"
NAMES = sorted(file.name for file in FOLDER.iterdir())
SITE = Path(__file__).parents[2] / "infra" / "nginx" / "site.conf"


def read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return values


def build(import_path: str, values: dict[str, Any]) -> Any:
    module, _, attribute = import_path.partition(":")
    return getattr(importlib.import_module(module), attribute)(dict(values))


def test_three_configurations_ship() -> None:
    assert NAMES == ["canary.yaml", "cluster.yaml", "local.yaml"]


@pytest.mark.parametrize("name", NAMES)
def test_ray_serve_knows_every_key(name: str) -> None:
    """Its schema ignores unknown keys, so a misspelt one would be lost."""
    values = read(name)
    schema = ServeDeploySchema.model_validate(values)
    assert set(values) <= set(ServeDeploySchema.model_fields)
    assert set(values["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    assert set(values["logging_config"]) <= set(LoggingConfig.model_fields)
    for application in values["applications"]:
        assert set(application) <= set(ServeApplicationSchema.model_fields)
    assert schema.applications[0].route_prefix == "/"


@pytest.mark.parametrize("name", NAMES)
def test_its_applications_are_built_from_their_args(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEP_SERVE_TOKEN", "a-token")
    for application in ServeDeploySchema.model_validate(read(name)).applications:
        assert isinstance(build(application.import_path, application.args), serve.Application)


@pytest.mark.parametrize("name", NAMES)
def test_rays_own_time_limit_is_above_the_endpoints(name: str) -> None:
    values = read(name)
    for application in values["applications"]:
        arguments = {key: value for key, value in application["args"].items() if key != "tracking"}
        assert values["http_options"]["request_timeout_s"] > ServeConfig(**arguments).longest_s


def test_public_endpoints_need_a_token_and_have_no_playground() -> None:
    for name in NAMES:
        values = read(name)
        for application in values["applications"]:
            if values["http_options"]["host"] == "127.0.0.1":
                assert application["args"]["host"] == "127.0.0.1"
            else:
                assert application["args"]["playground"] is False
                with pytest.raises(ConfigError, match="MAEP_SERVE_TOKEN"):
                    build(application["import_path"], application["args"])


def test_the_canary_is_the_cluster_plus_one_application_at_nginxs_prefix() -> None:
    cluster, both = read("cluster.yaml"), read("canary.yaml")
    assert both["applications"][0] == cluster["applications"][0]
    assert {**both, "applications": cluster["applications"]} == cluster
    canary = both["applications"][1]
    assert (canary["name"], canary["args"]["model"]) == ("maep-canary", "models:/purifier@candidate")
    prefix = re.search(r"^\s+canary (/\w+);", SITE.read_text(), re.M)
    assert prefix is not None
    assert prefix[1] == canary["route_prefix"]
