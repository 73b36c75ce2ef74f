"""The wheel holds everything that is needed at run time, and nothing else."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"maep": "platform", "maep_serve": "serve", "maep_jobs": "jobs"}


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_file)


def test_the_wheel_holds_every_committed_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES.values()], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    expected = {name.partition("/")[2] for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert len(expected) > 20
    assert not expected - set(wheel.namelist())


def test_the_wheel_holds_data_files(wheel: zipfile.ZipFile) -> None:
    """The page, the image lists, the typing markers, and whatever configurations and bundled purifiers there are."""
    names = set(wheel.namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "maep_serve/page/index.html" in names
    assert "maep/data/lists/cifar10-test-1000.txt" in names
    for package, room in PACKAGES.items():
        for path in (ROOT / room / package).rglob("*"):
            if path.suffix in {".yaml", ".html", ".txt", ".json", ".safetensors", ".md"} and path.is_file():
                assert path.relative_to(ROOT / room).as_posix() in names


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops - set(PACKAGES) == {"maep-0.1.0.dist-info"}
    assert not [name for name in wheel.namelist() if "test" in Path(name).name and name.endswith(".py")]
    assert not [name for name in wheel.namelist() if "__pycache__" in name]
    assert sum(entry.file_size for entry in wheel.infolist()) < 32 * 2**20


def test_the_wheel_installs_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    assert b"maep = maep_jobs.cli:main" in wheel.read("maep-0.1.0.dist-info/entry_points.txt")
    assert b"Apache License" in wheel.read("maep-0.1.0.dist-info/licenses/LICENSE")
