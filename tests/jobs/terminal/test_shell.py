"""Printed commands name a program that the user's shell finds."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from maep_jobs.terminal.shell import program


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's `bin` with a python and a maep in it."""
    folder.mkdir(parents=True)
    for name in ("python", "maep"):
        (folder / name).symlink_to("/bin/true")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


def test_in_an_activated_environment_the_name_suffices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(installed(tmp_path / "bin", monkeypatch)))
    assert program() == "maep"


def test_another_maep_on_the_path_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "maep").write_text("#!/bin/sh\n")
    (other / "maep").chmod(0o755)
    here = installed(tmp_path / "an env" / "bin", monkeypatch)
    monkeypatch.setenv("PATH", str(other))
    monkeypatch.chdir(other)
    assert shlex.split(program()) == [str(here / "maep")]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(program()) == ["an env/bin/maep"]


def test_an_unpacked_wheel_is_run_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    assert shlex.split(program()) == [str(tmp_path / "python"), "-m", "maep_jobs.cli"]


def test_the_printed_program_runs() -> None:
    done = subprocess.run(f"{program()} --version", shell=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("maep ")
