"""Rules of the repository: allowed imports, modules that need PyTorch alone, and committed text."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
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
    "api": GROUND | {"data", "models", "attacks", "evaluate", "tracking"},
}
LAZILY = {
    "tracking": {"models"},  # load_purifier builds the model it has resolved
    "evaluate": {"api"},  # maep.evaluate is a function too
}
SERVE_ORDER = ("config", "problems", "images", "engine", "http", "page", "api", "client", "release", "ray")
"""A room of the endpoint may import those before it."""
PURE_TORCH = {"models", "attacks"}
PURE_TORCH_MODULES = ("maep.train.loop.run", "maep.train.objectives", "maep.train.__main__", "maep.train.benchmark")
LISTS_OF_ONE_KIND = {"attacks", "verbs", "sets", "baselines", "losses", "metrics", "methods"}
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


def test_dependencies_point_one_way() -> None:
    """jobs -> serve -> platform, and inside platform only what MAY_IMPORT says, even inside functions."""
    above = {"maep": {"maep_serve", "maep_jobs"}, "maep_serve": {"maep_jobs"}, "maep_jobs": set()}
    wrong = []
    for path in SOURCES:
        name, named = module_name(path), imports(path, lazily=True)
        wrong += [(name, each) for each in named if top(each) in above[top(name)] | {"infra", "tests"}]
        here = room(name)
        if here is None:
            continue
        assert here in MAY_IMPORT, f"{here} is a new room: say in MAY_IMPORT what it may import"
        allowed = MAY_IMPORT[here] | {here, "__version__", None}
        wrong += [(name, each) for each in imports(path, lazily=False) if room(each) not in allowed]
        wrong += [(name, each) for each in named if room(each) not in allowed | LAZILY.get(here, set())]
    for path in SOURCES:
        name = module_name(path)
        if name.startswith("maep_serve."):
            place = SERVE_ORDER.index(name.split(".")[1])
            others = [each.split(".")[1] for each in imports(path, lazily=True) if each.startswith("maep_serve.")]
            wrong += [(name, each) for each in others if each in SERVE_ORDER[place + 1 :]]
    wrong += [(str(path), each) for path in (ROOT / "infra").rglob("*.py") for each in imports(path, lazily=True)
              if top(each) in PACKAGES]  # fmt: skip
    assert not wrong


def test_models_attacks_and_the_loop_run_with_torch_alone() -> None:
    """What a notebook or a bare GPU machine uses: nothing else is imported at module level, and it runs without it.

    `tests/train/test_torch_alone.py` runs both phases of `python -m maep.train` so.
    """
    names = [
        name for name in map(module_name, SOURCES) if room(name) in PURE_TORCH | GROUND or name in PURE_TORCH_MODULES
    ]
    foreign = {
        (name, top(each))
        for name, path in zip(map(module_name, SOURCES), SOURCES, strict=True)
        if name in names
        for each in imports(path, lazily=False)
        if top(each) not in ALLOWED_THERE | set(sys.stdlib_module_names)
    }
    assert not foreign
    program = f"""
import importlib, sys
HIDDEN = {{"ray", "mlflow", "pydantic", "sklearn", "rich", "httpx", "boto3", "botocore", "scipy", "fastapi", "pandas",
          "matplotlib", "optuna", "peft", "jinja2", "fsspec", "prometheus_client", "psutil", "simplejpeg"}}
{HIDE}
for name in {names!r}:
    importlib.import_module(name)

import torch
from maep import config
from maep.attacks.config import AttackConfig
from maep.attacks.run import attack
from maep.models.build import build_model
from maep.models.purifier import defend

classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
model = defend(classifier, build_model({{"name": "purifier"}}))
images = torch.rand(2, 3, 32, 32)
attacked = attack(model, images, torch.tensor([0, 1]), AttackConfig("pgd", 8 / 255, 2), torch.tensor([1, 2]))
assert (attacked - images).abs().max() <= 8 / 255 + 1e-6
assert not HIDDEN & set(sys.modules)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]


def test_modules_are_documented_and_small_and_folders_hold_few() -> None:
    """A docstring each, at most 300 lines, at most 12 files a folder; longer lists are of one kind."""
    wrong = []
    for path in SOURCES:
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        if not ast.get_docstring(ast.parse(text)):
            wrong.append(f"{name} has no docstring")
        if len(text.splitlines()) > 300:
            wrong.append(f"{name} has {len(text.splitlines())} lines")
    for folder, count in Counter(path.parent for path in SOURCES).items():
        if count > 13 and folder.name not in LISTS_OF_ONE_KIND:  # 12 and __init__.py
            wrong.append(f"{folder.relative_to(ROOT)} holds {count} files")
    assert not wrong


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
