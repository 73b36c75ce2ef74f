"""`maep VERB --help`: every key, at once; and the reference of keys in docs/configuration.md."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maep_jobs.cli import VERBS
from maep_jobs.reference import reference
from maep_jobs.verbs import finetune

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "timm", "torchvision", "ray", "mlflow", "sklearn", "numpy", "httpx", "pydantic", "pyarrow", "rich"}
NEEDED = {
    "run": ["digits/pipeline"],
    "promote": ["some/model"],
    "purify": ["a.png", "-o", "b.png"],
    "classifier": ["train", "digits"],
    "submit": ["serve"],
    "data": ["show", "digits"],
    "convert": ["a", "-o", "b"],
}
"""Arguments without which a verb refuses the command before it looks at keys."""


def loaded(commands: list[list[str]]) -> list[str]:
    """The heavy modules that are imported after each of the commands, run one after another in a new process."""
    program = f"""
import contextlib, io, sys
from maep_jobs.cli import main
for words in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(words)
        except SystemExit as exit:
            status = exit.code
    print(words[0], status, sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_help_imports_nothing_heavy() -> None:
    assert loaded([[verb, "--help"] for verb in VERBS]) == [f"{verb} 0 []" for verb in VERBS]


def test_a_misspelt_key_imports_nothing_heavy() -> None:
    """Nor does a key whose value is wrong."""
    misspelt = [[verb, *NEEDED.get(verb, []), "--sead", "1"] for verb in VERBS]
    wrong = [["pretrain", "--loop.samples", "many"], ["finetune", "--model.name", "unet"], ["serve", "--port", "0"]]
    assert loaded([*misspelt, *wrong]) == [f"{words[0]} 2 []" for words in [*misspelt, *wrong]]


@pytest.mark.parametrize("words", [("run", "--help"), ("pretrain", "--loop.sampels", "1")], ids=" ".join)
def test_help_and_user_errors_take_less_than_a_second_of_processor_time(words: tuple[str, ...]) -> None:
    """About 0.2 s; importing torch alone takes 4."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "maep_jobs.cli", *words], capture_output=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 1


@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_has_every_key_with_type_default_and_meaning(
    maep: Any, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ran = maep("finetune", "--help")
    keys = ran.out.partition("configuration keys")[2].partition("examples:")[0].splitlines()[1:]
    assert max(map(len, keys)) <= int(columns)
    words = "".join(ran.out.split())
    for key in finetune.parser().keys:
        if not key.is_section:
            text = f"--{key.path} {key.meaning} ({key.type}; default: {key.default or 'empty'})"
            assert "".join(text.split()) in words
    assert words.index("--resumeURI") < words.index("--loop.lrPeak") < words.index("examples:")


def test_a_section_of_several_classes_names_them() -> None:
    keys = {key.path: key for key in finetune.parser().keys}
    assert keys["model.name"].type == "conv|purifier|robust"
    assert keys["loss.pixel.weight"].default == "3"  # of this term, not of any
    assert keys["attacks.mixture[].share"].decides


def test_the_reference_in_docs_is_current() -> None:
    """To regenerate it: python -m maep_jobs.reference > docs/configuration.md"""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference()


def test_links_of_the_reference_resolve() -> None:
    text = reference()
    linked = {part.partition(")")[0] for part in text.split("](#")[1:]}
    assert linked <= {line[3:].lower() for line in text.splitlines() if line.startswith("## ")}
