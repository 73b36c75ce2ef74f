"""Configurations by name and file, overrides, and what --dry-run and --json print."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = Path(str(resources.files("maep_jobs"))) / "configs"
SHIPPED = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def line(name: str) -> list[str]:
    """The verb of a shipped configuration, and its other required arguments."""
    words = {
        "classifier": ["classifier", "train", name.partition("/")[0]],
        "vgg": ["classifier", "train", "cifar10"],
        "conv": ["finetune"],
        "lora": ["finetune"],
        "robust-decoder": ["finetune"],
        "robust-encoder": ["finetune"],
        "slice": ["pretrain"],
        "quick": ["evaluate"],
        "promote": ["promote", "some/model"],
        "pipeline": ["run"],
    }
    kind = name.rpartition("/")[2]
    return words.get(kind, [kind])


def with_config(name: str, source: str) -> list[str]:
    """The command line of `name` with its configuration taken from `source`."""
    words = line(name)
    return [*words, source] if words == ["run"] else [*words, "--config", source]


def test_configurations_are_shipped() -> None:
    assert {f"{data}/{kind}" for data in ("digits", "cifar10") for kind in ("pretrain", "finetune", "pipeline")} <= set(
        SHIPPED
    )


def untimed(plan: str) -> list[str]:
    """The lines of a plan without measured times."""
    return [text for text in plan.splitlines() if not text.startswith("# time: ")]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_prints_as_yaml_that_loads_back_unchanged(
    maep: Any, name: str, tmp_path: Path, everything: Callable[[], set[str]]
) -> None:
    output = [] if name == "serve" else ["--output", "there"]
    first = maep(*with_config(name, name), *output, "--dry-run")
    assert (first.status, first.err) == (0, "")
    assert any(text.startswith("# ") for text in first.out.splitlines())
    assert "tracking" in yaml.safe_load(first.out)
    (tmp_path / "printed.yaml").write_text(first.out)
    second = maep(*with_config(name, "printed.yaml"), *output, "--dry-run")
    assert (second.status, untimed(second.out)) == (0, untimed(first.out))
    assert everything() == {"printed.yaml"}


def test_overrides_reach_their_key(maep: Any) -> None:
    ran = maep(
        *("pretrain", "--config", "digits/pretrain", "--dry-run"),
        *("--loop.samples", "9600", "--loop.lr=1e-4", "--model.image_size", "[16, 16]", "--tracking.experiment", "x"),
    )
    values = yaml.safe_load(ran.out)
    assert (values["loop"]["samples"], values["loop"]["lr"], values["model"]["width"]) == (9600, 1e-4, 64)
    assert values["tracking"]["experiment"] == "x"
    assert "150 steps of 64 images" in ran.out


def test_overrides_may_come_before_the_arguments_of_a_verb(maep: Any) -> None:
    """`9600` is the value of its key, not the pipeline."""
    ran = maep("run", "--pretrain.loop.samples", "9600", "--parallel=1", "digits/pipeline", "--dry-run")
    values = yaml.safe_load(ran.out)
    assert (values["pretrain"]["loop"]["samples"], values["parallel"]) == (9600, 1)
    assert values["evaluate"]["images"] == "digits-test"


def test_a_section_may_be_the_name_of_a_configuration(maep: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("loop: {samples: 640, batch_size: 32}\ntracking: {enabled: false}\n")
    (tmp_path / "chain.yaml").write_text("pretrain: mine.yaml\nfinetune: cifar10/finetune\nconv: cifar10/conv\n")
    ran = maep("run", "chain.yaml", "--dry-run", "--finetune.loop.samples", "9600")
    assert ran.status == 0, ran
    values = yaml.safe_load(ran.out)
    alone = yaml.safe_load(maep("finetune", "--config", "cifar10/finetune", "--dry-run", "--loop.samples", "9600").out)
    assert values["finetune"] == {key: value for key, value in alone.items() if key != "tracking"}
    assert values["pretrain"]["loop"]["samples"] == 640
    assert values["conv"]["model"]["name"] == "conv"
    assert values["tracking"]["enabled"] is True
    (tmp_path / "chain.yaml").write_text("finetune: cifar10/finetun\n")
    assert maep("run", "chain.yaml", "--dry-run").is_mistake("'cifar10/finetun'", "cifar10/finetune")


def test_results_default_to_outputs(maep: Any) -> None:
    assert (
        "# result: outputs/digits/pretrain/model\n" in maep("pretrain", "--config", "digits/pretrain", "--dry-run").out
    )
    assert "# result: outputs/pretrain/model\n" in maep("pretrain", "--dry-run").out
    assert "# result: there/model\n" in maep("pretrain", "--output", "there", "--dry-run").out


def test_text_keys_are_not_read_as_yaml(maep: Any, tmp_path: Path) -> None:
    """Text and path values are not read as YAML: 0123 is not 83, and ` #1` is not a comment."""
    (tmp_path / "set #1").mkdir()
    ran = maep(
        *("finetune", "--dry-run", "--tracking.experiment", "0123", "--data.root", str(tmp_path / "set #1")),
        *("--init", "1e-4", "--classifiers", "0x10", "--tracking.artifact_uri", "true"),
    )
    values = yaml.safe_load(ran.out)
    assert values["tracking"]["experiment"] == "0123"
    assert values["data"]["root"] == str(tmp_path / "set #1")
    assert (values["init"], values["classifiers"]) == ("1e-4", ["0x10"])
    assert values["tracking"]["artifact_uri"] == "true"


PRETRAIN = ("pretrain", "--config", "digits/pretrain", "--dry-run")


@pytest.mark.parametrize(
    ("words", "patterns"),
    [
        (("pretrain", "--config", "cifar10/pretrian"), ("cifar10/pretrian", "'cifar10/pretrain'")),
        (("pretrain", "--config", "../digits/pretrain"), ("../digits/pretrain",)),
        (("run", "digits/pipelin"), ("digits/pipelin'", "'digits/pipeline'")),
        ((*PRETRAIN, "--loop.sampels", "5"), ("'loop.sampels'", "'samples'")),
        ((*PRETRAIN, "--loops.samples", "5"), ("'loops'", "'loop'")),
        ((*PRETRAIN, "--ouput", "x"), ("'ouput'", "'output'")),
        ((*PRETRAIN, "--experiment", "x"), ("'experiment'", "--tracking.experiment")),
        ((*PRETRAIN, "--samples", "5"), ("'samples'", "--loop.samples")),
        ((*PRETRAIN, "--loop.resume", "x"), ("'loop.resume'", "--resume")),
        ((*PRETRAIN, "--tracking.mask_ratio", "0.5"), ("'tracking.mask_ratio'",)),
        (("evaluate", "--uri", "x", "--dry-run"), ("'uri'", "--tracking.uri")),
        ((*PRETRAIN, "--loop.samples", "many"), ("loop.samples: ", "'many'")),
        ((*PRETRAIN, "--loop.samples", "3"), ("samples: 3 ", "64")),
        ((*PRETRAIN, "--loop.samples"), ("--loop.samples",)),
        ((*PRETRAIN, "--loop.lr", "[1"), ("loop.lr",)),
        ((*PRETRAIN, "loop.lr", "1"), ("'loop.lr'", "--section.key VALUE")),
        ((*PRETRAIN, "--data.name", "digit"), ("data.name: 'digit'", "'digits'")),
        ((*PRETRAIN, "--model.patch_size", "5"), ("patch_size: 5", "16x16")),
        ((*PRETRAIN, "--mask_ratio", "1.5"), ("mask_ratio",)),
        ((*PRETRAIN, "--tracking.urii", "x"), ("'tracking.urii'", "'uri'")),
        ((*PRETRAIN, "--tracking.uri", "here"), ("tracking: uri: 'here'", "http://HOST:PORT")),
        (("finetune", "--dry-run"), ("classifiers: ",)),
        (("evaluate", "--eps", "2", "--dry-run"), ("eps: ",)),
        (("serve", "--port", "70000", "--dry-run"), ("port: 70000",)),
        (("run", "digits/pipeline", "--gate.clean_floor", "95", "--dry-run"), ("gate: clean_floor: 95",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and len(value) > 2 else None,
)
def test_a_user_error_is_one_line_with_a_fix(
    maep: Any, words: tuple[str, ...], patterns: tuple[str, ...], everything: Callable[[], set[str]]
) -> None:
    assert maep(*words).is_mistake(*patterns)
    assert everything() == set()


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("loop: {samples: 320\n", "YAML"),
        ("- a list\n", "list"),
        ("loop: {samples: 320}\nloop: {samples: 640}\n", "'loop'"),
    ],
)
def test_a_file_that_is_not_a_configuration(maep: Any, tmp_path: Path, text: str, pattern: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    assert maep("pretrain", "--config", "wrong.yaml").is_mistake("wrong.yaml", pattern)


def test_json_is_the_only_standard_output(maep: Any, tiny: Callable[..., list[str]]) -> None:
    ran = maep(*tiny("--output", "out", "--json"))
    assert ran.status == 0
    said = json.loads(ran.out)
    assert said["kind"] == "mae"
    assert Path(said["model"]).is_dir()
    assert "pretrain out  320/320" in ran.err
