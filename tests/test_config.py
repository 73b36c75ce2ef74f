"""Typed configuration: accepted and refused values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from maep import config
from maep.errors import ConfigError, UserError


@dataclass(frozen=True)
class Big:
    name: Literal["big"] = "big"
    width: int = 64


@dataclass(frozen=True)
class Small:
    name: Literal["small"] = "small"
    depth: int = 2


@dataclass(frozen=True)
class Attack:
    name: Literal["fgsm", "pgd"] = "pgd"
    eps: float = 8 / 255
    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps} is too few: at least 1")


class Sizes:
    @staticmethod
    def names() -> list[str]:
        return ["big", "small"]

    @staticmethod
    def config_class(name: str) -> type:
        return {"big": Big, "small": Small}[name]


@dataclass(frozen=True)
class Job:
    seed: int
    title: str = "none"
    folder: Path = Path("outputs")
    rate: float = 1e-3
    fast: bool = False
    note: str | None = None
    size: tuple[int, int] = (32, 32)
    eps: tuple[float, ...] = (2 / 255,)
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    model: Any = config.named_section(Sizes, "big")
    attack: Attack = field(default_factory=Attack)
    attacks: tuple[Attack, ...] = ()


def job(*overrides: str, **values: Any) -> Job:
    return config.build(Job, config.apply_overrides({"seed": 1, **values}, overrides))


def test_defaults_apply() -> None:
    assert job() == Job(seed=1)


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"sead": 1}, ("'sead'", "'seed'")),
        ({"attack": {"step": 3}}, ("'attack.step'", "'steps'")),
        ({"model": {"name": "small", "width": 3}}, ("'model.width'",)),
        ({"attacks": [{}, {"epsilon": 1}]}, ("'attacks[1].epsilon'", "'eps'")),
        ({"attack": {"name": "fgms"}}, ("attack.name: ", "'fgms'", "'fgsm'")),
        ({"attack": {"name": "xyz"}}, ("attack.name: ", "'xyz'")),
        ({"model": {"name": "bigg"}}, ("model.name: ", "'bigg'", "'big'")),
        ({"model": {"name": ["big"]}}, ("model.name: ", "'big'")),
        ({"seed": "one"}, ("seed: ", "'one'")),
        ({"seed": 1.5}, ("seed: ",)),
        ({"seed": True}, ("seed: ",)),
        ({"seed": None}, ("seed: ",)),
        ({"fast": 1}, ("fast: ",)),
        ({"fast": "yes please"}, ("fast: ", "'yes please'")),
        ({"rate": "quick"}, ("rate: ", "'quick'")),
        ({"rate": True}, ("rate: ",)),
        ({"rate": "8/0"}, ("rate: ", "'8/0'")),
        ({"title": ["a"]}, ("title: ", "'a'")),
        ({"size": [1, 2, 3]}, ("size: ",)),
        ({"size": [1, "b"]}, ("size[1]: ", "'b'")),
        ({"weights": {"pixel": "much"}}, ("weights.pixel: ", "'much'")),
        ({"weights": 3}, ("weights: ",)),
        ({"attack": 3}, ("attack: ",)),
        ({"attack": {"steps": 0}}, ("attack: ",)),
        ({"model": 3}, ("model: ",)),
    ],
)
def test_errors_name_the_key_and_the_fix(values: dict[str, Any], fragments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        job(**values)
    assert all(fragment in str(caught.value) for fragment in fragments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["nan", ".nan", ".inf", "-inf", "1e400"])
def test_numbers_are_finite(number: str) -> None:
    """With a learning rate of NaN, training would run to the end for nothing."""
    with pytest.raises(ConfigError, match="rate: "):
        job("--rate", number)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="'seed'"):
        config.build(Job, {})


@pytest.mark.parametrize(
    ("text", "number"),
    [("8/255", 8 / 255), ("1e-4", 1e-4), ("3", 3.0), ("0.5", 0.5), ("-1.5", -1.5), (" 4 / 255 ", 4 / 255)],
)
def test_floats_may_be_fractions(text: str, number: float) -> None:
    assert job("--rate", text).rate == number
    assert job("--attack.eps", text).attack.eps == number


def test_the_name_chooses_the_class_of_a_section() -> None:
    assert job(model={"name": "small", "depth": 5}).model == Small(depth=5)
    assert job(model={"width": 5}).model == Big(width=5)
    assert job("--model.name", "small", "--model.depth", "7").model == Small(depth=7)


def test_one_value_is_used_for_every_position() -> None:
    assert job(size=16).size == (16, 16)
    assert job(eps="4/255").eps == (4 / 255,)
    assert job("--eps", "[2/255, 8/255]").eps == (2 / 255, 8 / 255)


def test_null_is_accepted_for_optional_keys() -> None:
    assert job("--note", "null").note is None
    assert job("--note", "12").note == "12"


def test_overrides_nest_and_change_nothing_else() -> None:
    before = {"seed": 1, "attack": {"steps": 3, "eps": "4/255"}}
    after = config.apply_overrides(
        before, ["--attack.steps", "9", "--names=[a, b]", "--title=x=y", "--weights.pixel", "2"]
    )
    assert config.build(Job, after).attack == Attack(steps=9, eps=4 / 255)
    assert after["title"] == "x=y"
    assert config.build(Job, after).weights == {"pixel": 2.0}
    assert before == {"seed": 1, "attack": {"steps": 3, "eps": "4/255"}}


def test_an_override_may_be_negative_or_empty() -> None:
    assert job("--seed", "-3").seed == -3
    assert job("--note", "").note == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stray"], "'stray'"),
        (["--"], "'--'"),
        (["--seed"], "--seed"),
        (["--names", "[a"], "--names: "),
        (["--sede", "3"], "'sede'"),
        (["--.seed", "3"], "''"),
        (["--attack..eps", "3"], "'attack.'"),
    ],
)
def test_bad_overrides(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job(*overrides)
    assert message in str(caught.value)


def test_yaml_round_trip(tmp_path: Path) -> None:
    whole = job(
        "--model.name",
        "small",
        "--folder",
        "a b/c",
        "--eps",
        "[1/255, 8/255]",
        "--note",
        "8/255",
        attacks=[{"steps": 2}],
    )
    path = tmp_path / "job.yaml"
    path.write_text(config.to_yaml(whole), encoding="utf-8")
    assert config.load(Job, path) == whole
    assert config.load(Job, path, ["--seed", "2"]).seed == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1\n", "YAML"),
        ("seed: 1\n\tattack: 2\n", "YAML"),
        ("- 1\n- 2\n", "list"),
        ("seed: 1\nseed: 2\n", "'seed'"),
        ("attack:\n  steps: 2\n  steps: 3\n", "'steps'"),
        ("seed: !!python/object/apply:os.getcwd []\n", "YAML"),
        ("", "'seed'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        config.load(Job, path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not text or "job.yaml" in str(caught.value)


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_unreadable_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / name))):
        config.load(Job, tmp_path / name)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "weights.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=r"weights\.yaml"):
        config.load(Job, tmp_path / "weights.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "0123",
        "/data/set #1",
        "1e-4",
        "true",
        "2024-01-01",
        "a: b",
        "~",
        "null",
        "[a",
        "{a}",
        "'quoted'",
        "0x10",
        " b ",
        "",
    ],
)
def test_text_and_paths_are_not_read_as_yaml(text: str, tmp_path: Path) -> None:
    """Text and path values of the command line are never read as YAML."""
    made = job("--title", text, "--folder", text, f"--note={text}")
    assert made.title == text
    assert made.folder == Path(text)
    assert made.note == (None if text == "null" else text)  # of an optional key, null is none
    path = tmp_path / "job.yaml"
    path.write_text(config.to_yaml(made), encoding="utf-8")
    assert config.load(Job, path) == made


def test_text_in_a_file_is_not_read_as_yaml(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("seed: 0010\ntitle: 0123\nnote: 1_000\nnames: [012, yes, 'a b']\nfast: yes\n", encoding="utf-8")
    made = config.load(Job, path)
    assert (made.seed, made.title, made.note, made.names, made.fast) == (
        10,
        "0123",
        "1_000",
        ["012", "yes", "a b"],
        True,
    )


def test_a_section_in_one_word() -> None:
    made = job("--attack", "{steps: 3, eps: 4/255}", "--attack.name", "fgsm", "--weights", "{pixel: 2}")
    assert made.attack == Attack("fgsm", 4 / 255, 3)
    assert made.weights == {"pixel": 2.0}


def test_a_key_of_another_section_is_pointed_out() -> None:
    with pytest.raises(ConfigError) as caught:
        job("--model.steps", "3")
    assert "'model.steps'" in str(caught.value)
    assert "--attack.steps" in str(caught.value)


@dataclass(frozen=True)
class Place:
    folder: str = config.key("out", "Where results go.", decides=False)


@dataclass(frozen=True)
class Run:
    lr: float = config.key(1e-3, "Learning rate.", decides=True)
    eps: float = config.key(8 / 255, "Budget.", decides=True)
    workers: int = config.key(1, "Processes.", decides=False)
    place: Place = config.section(Place)
    weights: dict[str, float] = config.key({}, "Weights by name.", decides=True)


def test_keys_declare_whether_they_decide() -> None:
    assert config.deciding(Run()) == {"lr": 1e-3, "eps": 8 / 255, "weights": {}}
    assert config.deciding(Run(workers=9, place=Place("elsewhere"))) == config.deciding(Run())
    assert config.digest(config.deciding(Run(lr=2e-3))) != config.digest(config.deciding(Run()))


def test_every_key_is_described() -> None:
    keys = {key.path: key for key in config.describe(Run)}
    assert list(keys) == ["lr", "eps", "workers", "place", "place.folder", "weights"]
    assert (keys["eps"].type, keys["eps"].default, keys["eps"].meaning) == ("number", "8/255", "Budget.")
    assert keys["place.folder"].decides is False


@pytest.mark.parametrize("text", ["--5", "+-3", "²", "5-", "1.5", "five"])
def test_what_is_no_integer_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        job(f"--seed={text}")


class Terms:
    """Two sections, one of a package that fails."""

    names = staticmethod(lambda: ["broken", "sound"])
    meaning = staticmethod(lambda name: name)

    @staticmethod
    def config_class(name: str) -> type:
        if name == "broken":
            raise UserError("the package broken-one cannot be imported")
        return Small


@dataclass(frozen=True)
class Loss:
    terms: dict[str, Any] = config.named_sections(Terms(), dict)
    rate: float = config.key(0.5, "A rate.", decides=True)


def test_a_section_that_cannot_be_imported_takes_neither_help_nor_hints_away() -> None:
    described = {key.path: key for key in config.describe(Loss, filled=Loss(terms={"sound": Small()}))}
    assert "broken-one" in described["broken"].meaning
    assert {"sound.depth", "rate"} <= set(described)
    with pytest.raises(ConfigError, match="rate"):
        config.build(Loss, {"rat": 1})


@pytest.mark.parametrize("number", ["9" * 19, "-" + "9" * 30])
def test_an_integer_that_no_library_holds_is_refused(number: str) -> None:
    for value in (number, int(number)):
        with pytest.raises(ConfigError, match="seed"):
            config.load(Job, overrides=["--seed", number]) if value is number else config.build(Job, {"seed": value})


def test_a_deeply_nested_value_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(f"names: {'[' * 3000}")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        config.load(Job, path)
    with pytest.raises(ConfigError, match="names"):
        config.load(Job, overrides=["--seed", "1", "--names", "[" * 3000])


def test_anchors_that_expand_without_end_are_refused(tmp_path: Path) -> None:
    """Nine lines of nine aliases each are 400 million values."""
    lines = ["a0: &a0 [1, 2]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="anchors"):
        config.read_yaml(path)
