"""The git revision that a run is tagged with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from maep.tracking.runs import commit_of

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True).stdout


def test_the_commit_of_a_checkout_and_whether_files_were_changed(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "__init__.py").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "-am", "a tag is no commit", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert commit_of(code) == commit
    (code / "__init__.py").write_text("x = 1\n")
    assert commit_of(code) == f"{commit}-dirty"


def test_a_package_inside_a_foreign_checkout_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    installed = tmp_path / ".venv" / "maep"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert commit_of(installed) is None
    assert commit_of(tmp_path / "missing") is None
