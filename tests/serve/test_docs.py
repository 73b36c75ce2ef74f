"""What docs/serving.md and the README tell a caller to type works as printed, and the errors table is complete."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import serving

from maep_serve.api import create_api
from maep_serve.problems import CODES
from maep_serve.service import Service

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
def folder(url: str, tmp_path: Path, picture: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the lines name, and a home whose curl finds the printed address at the test's port."""
    pixels = picture(SIDE, SIDE)
    for name in ("image.png", "image.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "pixels.raw").write_bytes(pixels.tobytes())
    port = url.rpartition(":")[2]
    options = [f'connect-to = "127.0.0.1:8000:127.0.0.1:{port}"', "fail-with-body", "silent", "show-error"]
    (tmp_path / ".curlrc").write_text("\n".join(options))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


def test_the_python_lines_work_but_for_the_port(folder: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in blocks(DOCS, "python") if "Client(" in block]
    assert ADDRESS in block
    exec(compile(block.replace(ADDRESS, url), "docs/serving.md", "exec"), {})
    assert opened(folder / "clean.png").size == (SIDE, SIDE)
    assert "Candidate(" in capsys.readouterr().out


def test_the_errors_table_is_the_endpoints() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \| .+ \|$", DOCS, re.M)
    assert {code: int(status) for status, code in rows} == {code: status for code, (status, _) in CODES.items()}


def test_links_inside_and_to_files_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", DOCS, re.M)
    headings = {re.sub(r"[^a-z0-9 -]", "", title.lower()).strip().replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", DOCS):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (ROOT / "docs" / target).is_file(), target


def test_commands_of_maep_are_its_verbs() -> None:
    from maep_jobs.cli import VERBS

    named = set(re.findall(r"^maep ([a-z]+)", "\n".join(blocks(DOCS)), re.M)) | set(re.findall(r"`maep ([a-z]+)", DOCS))
    assert {"serve", "purify", "promote", "rollback"} <= named
    assert named <= set(VERBS)
