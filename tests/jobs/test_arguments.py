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
    """The verb that a shipped configuration is for, and what it needs besides."""
    words = {
        "classifier": ["classifier", "train", name.partition("/")[0]],
        "vgg": ["classifier", "train", "cifar10"],
        "conv": ["finetune"],
        "lora": ["finetune"],
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


def test_some_are_shipped() -> None:
    assert {f"{data}/{kind}" for data in ("digits", "cifar10") for kind in ("pretrain", "finetune", "pipeline")} <= set(
        SHIPPED
    )


def untimed(plan: str) -> list[str]:
    """The lines of a plan, but what was measured for it."""
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
    assert maep("run", "chain.yaml", "--dry-run").is_mistake("finetune 'cifar10/finetun'", "cifar10/finetune")


def test_results_go_below_outputs_unless_told(maep: Any) -> None:
    assert (
        "# result: outputs/digits/pretrain/model\n" in maep("pretrain", "--config", "digits/pretrain", "--dry-run").out
    )
    assert "# result: outputs/pretrain/model\n" in maep("pretrain", "--dry-run").out
    assert "# result: there/model\n" in maep("pretrain", "--output", "there", "--dry-run").out


PRETRAIN = ("pretrain", "--config", "digits/pretrain", "--dry-run")


@pytest.mark.parametrize(
    ("words", "patterns"),
    [
        (("pretrain", "--config", "cifar10/pretrian"), ("cifar10/pretrian", "did you mean 'cifar10/pretrain'")),
        (("pretrain", "--config", "../digits/pretrain"), ("no file and not shipped",)),
        (("run", "digits/pipelin"), ("did you mean 'digits/pipeline'",)),
        ((*PRETRAIN, "--loop.sampels", "5"), ("unknown key 'loop.sampels'", "did you mean 'samples'")),
        ((*PRETRAIN, "--loops.samples", "5"), ("unknown option --loops", "did you mean 'loop'")),
        ((*PRETRAIN, "--ouput", "x"), ("unknown option --ouput", "did you mean 'output'")),
        ((*PRETRAIN, "--loop.samples", "many"), ("loop.samples: expected int, got 'many'",)),
        ((*PRETRAIN, "--loop.samples", "3"), ("samples: 3 must be at least one batch of 64",)),
        ((*PRETRAIN, "--loop.samples"), ("--loop.samples needs a value",)),
        ((*PRETRAIN, "--loop.lr", "[1"), ("loop.lr",)),
        ((*PRETRAIN, "loop.lr", "1"), ("unexpected argument 'loop.lr'", "--section.key VALUE")),
        ((*PRETRAIN, "--data.name", "digit"), ("data.name: 'digit' is not known", "did you mean 'digits'")),
        ((*PRETRAIN, "--model.patch_size", "5"), ("patch_size: 5 does not divide image_size 16x16", "one of")),
        ((*PRETRAIN, "--mask_ratio", "1.5"), ("mask_ratio",)),
        ((*PRETRAIN, "--tracking.urii", "x"), ("unknown key 'tracking.urii'", "did you mean 'uri'")),
        ((*PRETRAIN, "--tracking.uri", "here"), ("tracking: uri: 'here' is no tracking server", "http://HOST:PORT")),
        (("finetune", "--dry-run"), ("classifiers: name at least one",)),
        (("evaluate", "--eps", "2", "--dry-run"), ("eps: budgets must be in",)),
        (("serve", "--port", "70000", "--dry-run"), ("port: 70000 is not between",)),
        (("run", "digits/pipeline", "--gate.clean_floor", "95", "--dry-run"), ("gate: clean_floor: 95",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and len(value) > 2 else None,
)
def test_a_mistake_is_one_line_with_its_cure(
    maep: Any, words: tuple[str, ...], patterns: tuple[str, ...], everything: Callable[[], set[str]]
) -> None:
    assert maep(*words).is_mistake(*patterns)
    assert everything() == set()


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("loop: {samples: 320\n", "not valid YAML"),
        ("- a list\n", "the top level must be a mapping"),
        ("loop: {samples: 320}\nloop: {samples: 640}\n", "the key 'loop' is there twice"),
    ],
)
def test_a_file_that_is_no_configuration(maep: Any, tmp_path: Path, text: str, pattern: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    assert maep("pretrain", "--config", "wrong.yaml").is_mistake("wrong.yaml", pattern)


def test_json_is_alone_on_standard_output(maep: Any, tiny: Callable[..., list[str]]) -> None:
    ran = maep(*tiny("--output", "out", "--json"))
    assert ran.status == 0
    said = json.loads(ran.out)
    assert said["kind"] == "mae"
    assert Path(said["model"]).is_dir()
    assert "pretrain out  320/320" in ran.err
