"""The commands of docs/serving.md and the README work as printed, and the errors table is complete."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import serving
from stack import free_ports

from maep.tracking.resolve import resolve
from maep_serve.api import create_api
from maep_serve.config import ServeConfig
from maep_serve.engine.loading import build_models
from maep_serve.engine.service import Service
from maep_serve.problems import CODES

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
SIDE = 32


def blocks(text: str, language: str = "") -> list[str]:
    return [block for named, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if named == language]


def curl_lines(text: str) -> list[str]:
    lines = "".join(blocks(text)).replace("\\\n", "").splitlines()
    return [line for line in lines if line.startswith("curl ")]


@pytest.fixture(scope="module")
def url(config: Any, models: Any) -> Iterator[str]:
    with serving(create_api(Service(config, models))) as url:
        yield url


@pytest.fixture
def files(tmp_path: Path, picture: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the commands use, in a folder that is also $HOME."""
    pixels = picture(SIDE, SIDE)
    for name in ("image.png", "image.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "pixels.raw").write_bytes(pixels.tobytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(url: str, files: Path) -> Path:
    """`files`, for commands that call the application of this process."""
    lead_to(url, files)
    return files


def lead_to(url: str, home: Path) -> None:
    """Redirect curl from the printed address to `url`, in the .curlrc of `home`."""
    port = url.rpartition(":")[2]
    options = [f'connect-to = "127.0.0.1:8000:127.0.0.1:{port}"', "fail-with-body", "silent", "show-error"]
    (home / ".curlrc").write_text("\n".join(options))


def opened(file: Path) -> Image.Image:
    return Image.open(io.BytesIO(file.read_bytes()))


def run(line: str, folder: Path) -> str:
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_curl_line_works_as_printed(folder: Path, models: Any, png: Callable[..., bytes], offline: Any) -> None:
    lines = curl_lines(DOCS)
    assert len(lines) >= 7
    assert {"purify", "classify", "info", "readyz"} <= set(re.findall(r"8000/(?:v1/)?(\w+)", " ".join(lines)))
    said = {line: run(line, folder) for line in lines + curl_lines(README)}
    expected = offline(models, (folder / "image.png").read_bytes())[0].permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(opened(folder / "clean.png")), expected)
    assert np.array_equal(np.frombuffer((folder / "clean.raw").read_bytes(), np.uint8).reshape(SIDE, SIDE, 3), expected)
    assert opened(folder / "clean.jpg").format == "JPEG"
    assert any('"before"' in text for text in said.values())
    assert any(models.purifier_sha256 in text for text in said.values())


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_readmes_serve_and_curl_lines_work_on_ray(files: Path, shared_data: Path, offline: Any) -> None:
    """As printed except for the port, with the bundled purifier."""
    (line,) = [line for line in "".join(blocks(README)).splitlines() if line.startswith("maep serve ")]
    words = shlex.split(line.removesuffix("&"))[1:]
    assert words[1:3] == ["--model", "bundled:cifar10"]
    command = [sys.executable, "-m", "maep_jobs.cli", *words, "--port", str(free_ports(1)[0]), "--json"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "MAEP_DATA": str(shared_data)}
    )
    assert server.stdout is not None
    with server.stdout:
        try:
            started = json.loads(server.stdout.readline())
            lead_to(started["url"], files)
            said = [run(line, files) for line in curl_lines(README)]
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(120)
            finally:
                server.kill()
    assert server.returncode == 0
    served = resolve("bundled:cifar10")
    assert started["purifier_sha256"] == served.sha256
    models = build_models(served, ServeConfig(str(served.folder)))
    expected = offline(models, (files / "image.png").read_bytes())[0].permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(opened(files / "clean.png")), expected)
    answer = json.loads(said[-1])
    assert answer["classifier"] == "cifar10_resnet20"
    assert 0 <= answer["suspicion"]["score"] < 1


def test_the_python_example_works(folder: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in blocks(DOCS, "python") if "Client(" in block]
    assert ADDRESS in block
    exec(compile(block.replace(ADDRESS, url), "docs/serving.md", "exec"), {})
    assert opened(folder / "clean.png").size == (SIDE, SIDE)
    assert "Candidate(" in capsys.readouterr().out


def test_the_errors_table_lists_every_code() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \| .+ \|$", DOCS, re.M)
    assert {code: int(status) for status, code in rows} == {code: status for code, (status, _) in CODES.items()}


def test_links_resolve() -> None:
    titles = re.findall(r"^#+ (.+)$", DOCS, re.M)
    headings = {re.sub(r"[^a-z0-9 -]", "", title.lower()).strip().replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", DOCS):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (ROOT / "docs" / target).is_file(), target


def test_maep_commands_are_verbs() -> None:
    from maep_jobs.cli import VERBS

    named = set(re.findall(r"^maep ([a-z]+)", "\n".join(blocks(DOCS)), re.M)) | set(re.findall(r"`maep ([a-z]+)", DOCS))
    assert {"serve", "purify", "promote", "rollback"} <= named
    assert named <= set(VERBS)
