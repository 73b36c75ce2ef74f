"""The rules of the house: who may import whom, what must import with PyTorch alone, and what is committed."""

from __future__ import annotations

import ast
import importlib.util
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from hiding import HIDE

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"maep": ROOT / "platform", "maep_serve": ROOT / "serve", "maep_jobs": ROOT / "jobs"}
SOURCES = sorted(path for package, root in PACKAGES.items() for path in (root / package).rglob("*.py"))

# A room may import itself, the rooms listed here, and the ground every room stands on.
GROUND = {"config", "errors", "storage", "artifact", "registry", "seeding", "memory"}
MAY_IMPORT = {
    "errors": set(),
    "registry": {"errors"},
    "seeding": {"errors"},
    "memory": set(),
    "config": {"errors"},
    "storage": {"errors"},
    "cluster": {"errors"},
    "artifact": {"errors", "storage"},
    "data": GROUND,
    "models": GROUND | {"data"},
    "attacks": GROUND | {"data", "models"},
    "evaluate": GROUND | {"data", "models", "attacks", "cluster"},
    "train": GROUND | {"data", "models", "attacks", "evaluate", "cluster"},
    "tune": GROUND | {"data", "models", "attacks", "evaluate", "train", "cluster"},
    "tracking": GROUND,
}
LAZILY = {"tracking": {"models"}}  # load_purifier builds the model it has resolved
PURE_TORCH = ("models", "attacks")
PURE_TORCH_MODULES = ("maep.train.loop.run", "maep.train.objectives", "maep.train.__main__", "maep.train.benchmark")
ALLOWED_THERE = {"torch", "torchvision", "timm", "numpy", "pyarrow", "PIL", "yaml", "safetensors", "maep"}


def module_name(path: Path) -> str:
    """platform/maep/data/lists.py -> maep.data.lists"""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, lazily: bool) -> set[str]:
    """Dotted names that `path` imports: at module level, or (`lazily`) also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{whole}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazily:
            continue
        pending += ast.iter_child_nodes(node)
    return found


def room(name: str) -> str | None:
    """maep.data.lists -> data; None for anything outside maep, and for maep itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "maep" and len(parts) > 1 else None


def top(name: str) -> str:
    """The distribution-level name: torch.nn -> torch."""
    return name.partition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_one_way(path: Path) -> None:
    """jobs -> serve -> platform, and inside platform only what MAY_IMPORT says, even inside functions."""
    package = module_name(path).partition(".")[0]
    named = imports(path, lazily=True)
    above = {"maep": {"maep_serve", "maep_jobs"}, "maep_serve": {"maep_jobs"}, "maep_jobs": set()}[package]
    assert not {name for name in named if top(name) in above | {"infra", "tests"}}
    here = room(module_name(path))
    if here is None:
        return
    assert here in MAY_IMPORT, f"{here} is a new room: say in MAY_IMPORT what it stands on"
    allowed = MAY_IMPORT[here] | {here, "__version__"}
    at_once = {name for name in imports(path, lazily=False) if room(name) not in allowed | {None}}
    assert not at_once, f"{path.relative_to(ROOT)} must not import {sorted(at_once)}"
    later = {name for name in named if room(name) not in allowed | LAZILY.get(here, set()) | {None}}
    assert not later, f"{path.relative_to(ROOT)} must not import {sorted(later)}, not even lazily"


def test_models_attacks_and_the_loop_name_only_torch() -> None:
    """What a notebook or a bare GPU machine uses imports nothing at module level that such a machine lacks."""
    for path in SOURCES:
        name = module_name(path)
        if room(name) in PURE_TORCH or name in PURE_TORCH_MODULES or room(name) in GROUND:
            foreign = {top(n) for n in imports(path, lazily=False)} - ALLOWED_THERE - set(sys.stdlib_module_names)
            assert not foreign, f"{name} imports {sorted(foreign)} at module level"


def test_models_attacks_and_the_loop_import_with_torch_alone() -> None:
    """The same, for everything they import in turn: the rest of the environment is blocked."""
    names = [module_name(path) for path in SOURCES if room(module_name(path)) in PURE_TORCH]
    names += [name for name in PURE_TORCH_MODULES if importlib.util.find_spec(name) is not None]
    program = f"""
import importlib, sys
HIDDEN = {{"ray", "mlflow", "pydantic", "sklearn", "rich", "httpx", "boto3", "botocore", "scipy", "fastapi", "pandas"}}
{HIDE}
for name in {names!r}:
    importlib.import_module(name)
assert not HIDDEN & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]


def test_loading_and_training_import_no_more_than_they_need() -> None:
    """Data sets neither Ray nor MLflow, and scikit-learn only for the digits; a training without both, neither."""
    program = """
import sys
from maep.data import datasets, get, lists
print({"ray", "mlflow", "pydantic", "sklearn", "torchvision", "timm"} & set(sys.modules))
import maep_jobs.verbs.pretrain
print({"ray", "mlflow", "scipy", "boto3"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["set()", "set()"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_module_says_what_it_is(path: Path) -> None:
    if not path.name.startswith("_") or path.name == "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


def test_source_files_stay_small() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text("utf-8").splitlines())) > 320}
    assert not long


def test_platform_is_still_the_standard_library() -> None:
    """A package at platform/ would shadow the standard library's module of that name for everybody."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    import platform

    assert platform.system()
    program = "import platform, uuid; print(platform.system(), platform.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout.replace(sys.prefix, "")


@pytest.mark.slow
def test_platform_in_a_ray_worker_started_from_the_root(tmp_path: Path) -> None:
    program = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
@ray.remote
def where():
    import os, platform
    return platform.system(), platform.__file__, os.getcwd()
system, file, folder = ray.get(where.remote(), timeout=240)
assert system and "site-packages" not in file, file
print(system, folder)
ray.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    system, folder = done.stdout.split()[-2:]
    assert system == __import__("platform").system()
    assert Path(folder) == ROOT


def test_infra_imports_nothing_of_ours() -> None:
    for path in (ROOT / "infra").rglob("*.py"):
        named = {top(name) for name in imports(path, lazily=True)}
        assert not named & set(PACKAGES), f"{path} imports {named & set(PACKAGES)}"


def committed_text() -> list[tuple[str, str]]:
    """Path and text of every committed file that is text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    texts = []
    for name in filter(None, listed.stdout.split("\0")):
        try:
            texts.append((name, (ROOT / name).read_text(encoding="utf-8")))
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
    return texts


def test_nothing_committed_names_a_registry_or_a_machine() -> None:
    """Addresses of package registries and absolute paths of somebody's machine are configuration, not source."""
    hosts = r"pypi\.org|pythonhosted\.org|download\.pytorch|--index[-]url|--extra[-]index"
    paths = r"(?<![\w.~/-])/(?:work|root|tmp|home|Users|workspace)/[\w.-]"
    pattern = re.compile(f"{hosts}|{paths}")
    found = [
        f"{name}:{number}: {match.group()}"
        for name, text in committed_text()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert not found


def test_lock_pins_every_package_by_hash() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = re.findall(
        r"^([A-Za-z0-9_.\[\]-]+)==\S+[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M
    )
    assert len(pins) == len(re.findall(r"^[A-Za-z0-9]", text, re.M)) > 100
    assert {"torch", "mlflow", "hatchling", "pytest"} <= {name for name, _ in pins}


def test_help_is_immediate() -> None:
    """`maep --help` takes at most half a second: verbs import what they need when they run.

    Processor time of one thread: on an idle machine the time a user waits, and not longer because others are busy.
    """
    command = [sys.executable, "-m", "maep_jobs.cli", "--help"]
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.returncode == 0, done.stderr
        assert "pretrain" in done.stdout
    assert statistics.median(taken) <= 0.5, f"maep --help took {taken} s"
