"""`maep evaluate`: a result, the page beside it, and two of its purifiers side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluations import bundled

from maep.artifact import Artifact

WHOLE = str(bundled().folder)


@pytest.fixture
def line(classifier: Path, tmp_path: Path, make_purifier: Callable[[int], Artifact]) -> list[str]:
    """Words of an evaluation of two purifiers on 12 digits."""
    values = {
        "data": {"name": "digits"},
        "images": "digits-dev",
        "num_images": 12,
        "classifiers": [str(classifier)],
        "baselines": ["none"],
        "eps": ["8/255"],
        "num_probes": 4,
        "cache": str(tmp_path / "cache"),
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    purifiers = [f"--purifier={name}={make_purifier(seed).folder}" for seed, name in enumerate(("one", "two"))]
    return ["evaluate", "--config", "tiny.yaml", "--output", "out", *purifiers]


def test_report_is_written_beside_the_result(maep: Any, line: list[str], tmp_path: Path) -> None:
    ran = maep(*line)
    assert ran.status == 0, ran.err
    assert ran.out.endswith("result: out\nreport: out/report.html\n")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4  # two purifiers, without and with knowledge of them
    assert "oblivious PGD-20 at 8/255" in page
    assert "maep evaluate --config tiny.yaml" in page

    compared = maep("evaluate", "--compare", "out:one", "out:two", "--json")
    assert compared.status == 0, compared.err
    values = json.loads(compared.out)
    assert {row["threat"] for row in values["rows"]} == {"clean", "oblivious", "adaptive"}
    assert (values["a"]["purifier"], values["b"]["purifier"]) == ("one", "two")


def test_two_purifiers_side_by_side(maep: Any, everything: Callable[[], set[str]]) -> None:
    words = ("evaluate", "--compare", f"{WHOLE}:maep", f"{WHOLE}:conv")
    ran, text = maep(*words), maep(*words, "--markdown")
    assert (ran.status, text.status) == (0, 0)
    cell = re.search(r"\| oblivious \| 8/255 \|[^|]+\| ([^|]+) \|", text.out)
    assert cell is not None
    assert cell[1] in ran.out
    assert "Newcombe" in ran.out
    assert everything() == set()


def test_incomparable_results_are_one_line_errors(maep: Any, tmp_path: Path) -> None:
    assert maep("evaluate", "--compare", WHOLE, WHOLE).is_mistake("FOLDER:maep")
    assert maep("evaluate", "--compare", "nowhere", WHOLE).is_mistake("nowhere", "result.json")
    assert maep("evaluate", "--compare", f"{WHOLE}:mape", f"{WHOLE}:conv").is_mistake("'maep'")
    assert maep("evaluate", "--compare", f"{WHOLE}:", WHOLE).is_mistake("FOLDER:PURIFIER")
    assert maep("evaluate", "--compare", WHOLE).is_mistake("--compare")
    assert maep("evaluate", "--compare", WHOLE, WHOLE, "--purifier", "x=y").is_mistake("--purifier and --compare")
    assert maep("evaluate", "--json", "--markdown").is_mistake("--json and --markdown")


def test_the_plan_names_the_attacks(maep: Any) -> None:
    ran = maep("evaluate", "--config", "cifar10/quick", "--dry-run")
    assert "# oblivious at 8/255, 1000 images: FGSM, PGD-20, APGD-CE-20" in ran.out
    assert "# adaptive at 8/255, 256 images: PGD-20, APGD-CE-50" in ran.out
