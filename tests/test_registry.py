"""Extension points: names without imports, lazy look-up, and plug-ins whose failure affects nothing else."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maep import registry
from maep.errors import ConfigError, UserError
from maep.evaluate import baselines
from maep.registry import Registry, entries
from maep.registry.entries import baseline_arguments

REGISTRIES = [
    registry.attacks,
    registry.baselines,
    registry.families,
    registry.losses,
    registry.metrics,
    registry.datasets,
]
PLAIN = "from maep import registry\n\n\n@registry.baseline({name!r}, strength=3)\ndef make(strength):\n    ...\n"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder on sys.path; modules imported from it are removed afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def install(folder: Path, distribution: str, points: dict[str, str], **modules: str) -> None:
    """A distribution with entry points for baselines, and its modules' text."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {module}\n" for name, module in points.items())
    (info / "entry_points.txt").write_text(f"[maep.baselines]\n{lines}")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


@pytest.fixture
def fresh(packages: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[..., dict[str, Any]]:
    """A registry of the baselines that has not looked for plug-ins yet; it replaces the one that decorators use."""
    del packages
    found = Registry("baseline", "maep.evaluate.baselines", baseline_arguments, "maep.baselines")
    found._registered |= registry.baselines._registered  # their files may be imported already
    monkeypatch.setattr(registry, "baseline", found.register)
    return found


@pytest.mark.parametrize("each", REGISTRIES, ids=lambda each: each.kind)
def test_parsed_declarations_equal_registered_ones(each: Registry[..., object]) -> None:
    read = {name: each.declared(name) for name in each.names()}
    assert read
    for name, declared in read.items():
        each.get(name)
        assert each._registered[name][1] == declared


def test_names_and_declarations_import_neither_torch_nor_the_files() -> None:
    program = """
import sys
from maep import registry
for each in (registry.attacks, registry.baselines, registry.losses, registry.metrics, registry.datasets):
    for name in each.names():
        each.declared(name)
registry.families.names()
print({"torch", "maep.evaluate.baselines.jpeg"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["set()"], done.stderr


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="jpeg-q50"):
        registry.baselines.get("jpeg-50")
    with pytest.raises(ConfigError, match="jpeg-q50"):
        registry.baselines.require(["none", "jpeg-50"], "baselines")


def test_a_plug_in_is_listed_at_once_and_imported_on_use(packages: Path, fresh: Registry[..., dict[str, Any]]) -> None:
    install(packages, "mirrors", {"mirror": "mirrors"}, mirrors=PLAIN.format(name="mirror"))
    assert "mirror" in fresh.names()
    assert "mirrors" not in sys.modules
    assert fresh.declared("mirror") == {"strength": 3}
    assert fresh.get("mirror").__module__ == "mirrors"


def test_what_a_plug_in_declares_is_read_without_importing_it(
    packages: Path, fresh: Registry[..., dict[str, Any]]
) -> None:
    """So that help stays quick with a plug-in that imports torch, or that hangs."""
    install(
        packages, "slow-ones", {"mirror": "mirrors", "inner": "parent.inner"},
        mirrors="import torch, time\n" + PLAIN.format(name="mirror"),
    )  # fmt: skip
    (packages / "parent").mkdir()
    (packages / "parent" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (packages / "parent" / "inner.py").write_text(PLAIN.format(name="inner"))
    assert [fresh.declared(name) for name in ("mirror", "inner")] == [{"strength": 3}] * 2
    assert not {"mirrors", "parent"} & set(sys.modules)


@pytest.mark.parametrize("name", ["../x", "a/b", "my stripes", "1e3", "-x", "a.b", ""])
def test_a_name_that_is_no_word_is_refused(
    name: str, packages: Path, fresh: Registry[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="a name is"):
        fresh.register(name)
    if name.strip("."):
        install(packages, "odd", {name: "mirrors"}, mirrors=PLAIN.format(name=name))
        with caplog.at_level(logging.WARNING, logger="maep.registry"):
            assert name not in fresh.names()
        assert "odd" in caplog.text


def test_a_broken_plug_in_is_a_one_line_error_and_the_rest_works(
    packages: Path, fresh: Registry[..., dict[str, Any]]
) -> None:
    broken = {
        "missing": "import no_such_package\n",
        "wrong": "raise RuntimeError('two\\nlines')\n",
        "silent": "",
        "leaving": "raise SystemExit(0)\n",
        "thief": PLAIN.format(name="median"),
    }
    install(packages, "broken-one", {name: name for name in broken}, **broken)
    install(packages, "sound", {"mirror": "mirrors"}, mirrors=PLAIN.format(name="mirror"))
    assert {*broken, "mirror", "median"} <= set(fresh.names())
    for name in broken:
        with pytest.raises(UserError, match="broken-one") as caught:
            fresh.get(name)
        assert "\n" not in str(caught.value)
    assert fresh.get("mirror")
    assert fresh.get("median").__module__ == "maep.evaluate.baselines.median"


def test_a_taken_name_is_ignored_with_one_warning(
    packages: Path, fresh: Registry[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    install(packages, "another", {"median": "another"}, another=PLAIN.format(name="median"))
    install(packages, "second", {"mirror": "second"}, second=PLAIN.format(name="mirror"))
    install(packages, "first", {"mirror": "first"}, first=PLAIN.format(name="mirror"))
    with caplog.at_level(logging.WARNING, logger="maep.registry"):
        fresh.names()
        fresh.names()
    assert len(caplog.records) == 2
    assert "another" in caplog.messages[0]
    assert "second" in caplog.messages[1]
    assert fresh.get("mirror").__module__ == "first"
    assert fresh.get("median").__module__ == "maep.evaluate.baselines.median"


def test_a_name_registered_in_a_script_works_and_is_reserved(fresh: Registry[..., dict[str, Any]]) -> None:
    @registry.baseline("scripted")
    def make() -> None: ...

    assert "scripted" in fresh.names()
    assert fresh.get("scripted") is make
    make.__module__ = "elsewhere"
    with pytest.raises(ConfigError, match="scripted"):
        registry.baseline("scripted")(lambda: None)


@pytest.mark.parametrize(
    ("entry", "declared"),
    [
        (entries.AttackEntry, {"norms": "Linf", "label": "text"}),
        (entries.AttackEntry, {"norms": ("Linf",), "label": "effort", "effort": "time"}),
        (entries.FamilyEntry, {"config": None}),
        (entries.FamilyEntry, {"config": object}),
        (entries.LossEntry, {"meaning": "no term", "config": int}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else next(reversed(value)),
)
def test_a_declaration_that_could_not_be_used_is_refused_when_it_is_made(
    entry: type, declared: dict[str, object]
) -> None:
    with pytest.raises(TypeError, match="must be"):
        entry(**declared)


def test_a_name_in_two_files_of_the_repository_is_refused(packages: Path) -> None:
    folder = packages / "doubled"
    folder.mkdir()
    for file in ("__init__", "one", "two"):
        (folder / f"{file}.py").write_text("" if file == "__init__" else PLAIN.format(name="mirror"))
    with pytest.raises(ConfigError, match=r"doubled\.(one|two) and by doubled\."):
        Registry("baseline", "doubled", baseline_arguments, "maep.baselines").names()


def test_a_baseline_without_its_attributes_is_refused(
    packages: Path, fresh: Registry[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "baselines", fresh)
    text = "from torch import nn\nfrom maep import registry\nregistry.baseline('bare')(nn.Identity)\n"
    install(packages, "bare-one", {"bare": "bare_module"}, bare_module=text)
    with pytest.raises(UserError, match="bare"):
        baselines.build("bare")
