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

FOLDER = importlib.resources.files("maep_serve") / "configs"
NAMES = sorted(file.name for file in FOLDER.iterdir())
SITE = Path(__file__).parents[2] / "infra" / "nginx" / "site.conf"


def read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return values


def test_they_are_three() -> None:
    assert NAMES == ["canary.yaml", "cluster.yaml", "local.yaml"]


@pytest.mark.parametrize("name", NAMES)
def test_ray_serve_takes_it_and_ignores_no_key(name: str) -> None:
    """Its schema lets keys pass that it does not know, so that a misspelt one would be lost."""
    values = read(name)
    schema = ServeDeploySchema.model_validate(values)
    assert set(values) <= set(ServeDeploySchema.model_fields)
    assert set(values["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    assert set(values["logging_config"]) <= set(LoggingConfig.model_fields)
    for application in values["applications"]:
        assert set(application) <= set(ServeApplicationSchema.model_fields)
    assert schema.applications[0].route_prefix == "/"


@pytest.mark.parametrize("name", NAMES)
def test_its_applications_are_built_from_their_args(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MAEP_SERVE_TOKEN", raising=False)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"team {'0' * 64}\n")
    for application in ServeDeploySchema.model_validate(read(name)).applications:
        module, _, attribute = application.import_path.partition(":")
        values = dict(application.args)
        if "tokens_file" in values:
            assert values["tokens_file"] == "/etc/maep/tokens"
            values["tokens_file"] = str(tokens)
        built = getattr(importlib.import_module(module), attribute)(values)
        assert isinstance(built, serve.Application)


def test_what_others_can_reach_has_tokens_and_no_playground() -> None:
    for name in NAMES:
        values = read(name)
        for application in values["applications"]:
            if values["http_options"]["host"] == "127.0.0.1":
                assert application["args"]["host"] == "127.0.0.1"
            else:
                assert application["args"]["tokens_file"]
                assert application["args"]["playground"] is False


def test_the_canary_is_the_cluster_and_one_more_where_nginx_looks_for_it() -> None:
    cluster, both = read("cluster.yaml"), read("canary.yaml")
    assert both["applications"][0] == cluster["applications"][0]
    assert {**both, "applications": cluster["applications"]} == cluster
    canary = both["applications"][1]
    assert (canary["name"], canary["args"]["model"]) == ("maep-canary", "models:/purifier@candidate")
    prefix = re.search(r"^\s+canary (/\w+);", SITE.read_text(), re.M)
    assert prefix is not None
    assert prefix[1] == canary["route_prefix"]
