"""`maep demo` as a new user runs it: from the built wheel, in an empty folder, twice."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image
from processes import marked
from stack import free_ports


@pytest.fixture(scope="module")
def unpacked(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, installed into a folder of its own (a wheel is a zip file of what an installer puts there)."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel_file) as wheel:
        wheel.extractall(site)
    return site


def environment(site: Path, home: Path, mark: str = "") -> dict[str, str]:
    """The environment of a user with the wheel but without a checkout, data, caches or settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAEP_", "OMP_", "MLFLOW_"))}
    return {**kept, "PYTHONPATH": str(site), "HOME": str(home), "MAEP_TEST_MARK": mark}


def test_the_wheel_outside_the_checkout_finds_its_configurations(unpacked: Path, tmp_path: Path) -> None:
    program = (
        "import sys, maep_jobs; print(maep_jobs.__file__, file=sys.stderr);"
        " from maep_jobs.cli import main; raise SystemExit(main(['demo', '--dry-run']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(unpacked, tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{unpacked / 'maep_jobs' / '__init__.py'}\n"
    assert yaml.safe_load(done.stdout)["pretrain"]["data"]["name"] == "digits"
    assert "# finetune: to do" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_succeeds_trains_once_and_prints_commands_that_work(unpacked: Path, tmp_path: Path) -> None:
    home, work, mark = tmp_path / "home", tmp_path / "work", uuid.uuid4().hex
    home.mkdir()
    work.mkdir()
    variables = environment(unpacked, home, mark)
    port = free_ports(1)[0]
    line = [sys.executable, "-m", "maep_jobs.cli", "demo", "--serve.port", str(port)]

    first = subprocess.run(line, cwd=work, env=variables, capture_output=True, text=True, timeout=1200)
    assert first.returncode == 0, first.stderr
    assert marked("MAEP_TEST_MARK", mark) == []
    with Image.open(work / "outputs" / "demo" / "purified.png") as picture:
        assert min(picture.size) > 200
    result = json.loads(next((work / "outputs" / "demo").glob("evaluate-*/result.json")).read_text())
    assert result["split"] == "test"
    assert "not " not in next(text for text in first.stderr.splitlines() if "champion" in text and "version" in text)
    assert "byte for byte the champion's offline output" in first.stderr
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {"work", "home"}
    assert not [path for path in home.rglob("*") if path.is_file() and ".ray" not in path.parts]

    second = subprocess.run(line, cwd=work, env=variables, capture_output=True, text=True, timeout=600)
    assert second.returncode == 0, second.stderr
    for stage in ("classifier-seen", "classifier-unseen", "pretrain", "finetune", "conv", "evaluate"):
        assert f"{stage}: already done" in second.stderr
    assert not re.search(r": maep (pretrain|finetune|classifier) ", second.stderr)

    _, _, following = first.stdout.partition("\nnext:\n")
    printed = [text.strip() for text in following.splitlines() if re.match(r" {2}\S", text)]
    assert len(printed) == 4
    for each in printed:
        if "bundled:" not in each or (unpacked / "maep" / "bundled" / "cifar10").is_dir():
            done = subprocess.run(
                f"{each} --dry-run", shell=True, cwd=work, env=variables, capture_output=True, text=True, timeout=120
            )
            assert (done.returncode, done.stderr) == (0, ""), each
    for word in shlex.split(printed[0]):
        if word.startswith("outputs/"):
            assert (work / word / "MANIFEST.json").is_file()
