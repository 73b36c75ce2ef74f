"""The command line as a whole: verbs, help, exit statuses and errors."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maep import __version__
from maep.data.datasets import load
from maep.data.image_set import ImageSet
from maep_jobs.cli import VERBS


def test_help_names_every_verb(maep: Any) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        ran = maep(*words)
        assert (ran.status, ran.err) == (0, "")
        assert all(f"  {verb} " in ran.out for verb in VERBS)


def test_version(maep: Any) -> None:
    assert maep("--version").out == f"maep {__version__}\n"


def test_unknown_verb(maep: Any) -> None:
    ran = maep("pretrian")
    assert (ran.status, ran.out) == (2, "")
    assert "'pretrian'" in ran.err
    assert "'pretrain'" in ran.err
    assert all(verb in maep("xyzzy").err for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_examples(maep: Any, verb: str) -> None:
    ran = maep(verb, "--help")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"usage: maep {verb} ")
    assert examples(ran.out)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("convert", "data", "purify")])
def test_examples_of_the_help_work_as_printed(
    maep: Any, verb: str, tmp_path: Path, everything: Callable[[], set[str]]
) -> None:
    """With --dry-run: each example of the help resolves, and nothing is written."""
    (tmp_path / "my.yaml").write_text("{}")
    for example in examples(maep(verb, "--help").out):
        if verb == "tune" and "--resume" in example:  # a search that is not there
            continue
        ran = maep(*(word for word in example if word != "--dry-run"), "--dry-run")
        assert (ran.status, ran.err) == (0, ""), (example, ran)
        assert ran.out
    assert everything() == {"my.yaml"}


def examples(help_text: str) -> list[list[str]]:
    """The words after `maep` of every example line."""
    _, _, below = help_text.partition("examples:\n")
    lines = [line.partition("maep ")[2] for line in below.splitlines() if "maep " in line and line.startswith("  ")]
    return [shlex.split(line) for line in lines]


def test_unknown_arguments_are_one_line(maep: Any) -> None:
    assert maep("data", "show").is_mistake("maep data show --help")
    assert maep("data", "show", "digits", "--max-corrupt", "many").is_mistake("max-corrupt", "many")
    assert maep("data", "show", "digit").is_mistake("'digits'")
    assert maep("classifier", "train", "cifar").is_mistake("'cifar10'")
    assert maep("classifier", "tain", "digits").is_mistake("tain")
    assert maep("promote").is_mistake("URI")
    assert maep("evaluate", "--purifier", "x").is_mistake("NAME=URI")
    assert maep("submit", "serve").is_mistake("'serve'")
    assert maep("run", "digits/pipeline", "--config", "x.yaml").is_mistake("maep run x.yaml")


def test_a_file_instead_of_a_folder(maep: Any, tiny: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("something")
    assert maep(*tiny("--output", "taken/below")).is_mistake("taken", "Not a directory|exists")
    assert maep(*tiny("--output", "taken")).is_mistake("taken", "Not a directory|exists")
    assert (tmp_path / "taken").read_text() == "something"


def test_data_show_counts_in_lines_and_in_json(maep: Any) -> None:
    ran = maep("data", "show", "digits", "--json")
    assert [(entry["split"], entry["images"]) for entry in json.loads(ran.out)] == [
        ("train", 1197),
        ("dev", 300),
        ("test", 300),
    ]
    assert "split dev  images 300  size 16x16" in maep("data", "show", "digits").out


def test_output_of_libraries_is_kept_out_of_the_json(maep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray says on standard output that a worker has died."""

    def noisy(*words: Any) -> ImageSet:
        print("(raylet) A worker died")
        return load(*words)

    monkeypatch.setattr("maep.data.datasets.load", noisy)
    ran = maep("data", "show", "digits", "--json")
    assert len(json.loads(ran.out)) == 3
    assert ran.err.count("(raylet) A worker died\n") == 3


def test_ctrl_c_is_reported_and_the_same_command_resumes(
    maep: Any, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Ctrl-C after the first checkpoint; re-running the same command resumes from it."""
    line = tiny("--output", "out", "--loop.samples", 1_000_000, "--loop.checkpoint_every", 320)
    index = tmp_path / "out" / "checkpoints" / "index.json"

    def newest() -> int:
        return max(map(int, json.loads(index.read_text()))) if index.is_file() else 0

    def interrupt(after: int) -> None:
        deadline = time.monotonic() + 120
        while newest() <= after and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    def stopped() -> Any:
        watcher = threading.Thread(target=interrupt, args=[newest()])
        watcher.start()
        ran = maep(*line)
        watcher.join()
        return ran

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    first = stopped()
    assert first.status == 130
    assert first.err.splitlines()[-1].startswith("maep pretrain: ")
    saved = newest()
    assert saved >= 320
    assert stopped().status == 130
    assert newest() > saved
    assert not (tmp_path / "out" / "model").exists()


def test_a_loss_that_is_not_finite_fails_and_names_the_step(maep: Any, tiny: Callable[..., list[str]]) -> None:
    ran = maep(*tiny("--loop.lr", "1e30", "--loop.clip", "null", "--output", "out"))
    assert ran.status == 1
    assert re.search(r"maep pretrain: .*step \d+", ran.err.splitlines()[-1])
