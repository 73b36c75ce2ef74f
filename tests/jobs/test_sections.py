"""Configuration files for several verbs, such as the best.yaml of a search: each verb reads its own section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from searches import FINETUNE, PRETRAIN, grid, write

from maep.tune import results


@pytest.fixture
def best(tmp_path: Path) -> str:
    """The best.yaml of a search over digits, as `maep tune` writes it."""
    results.write(results.read(write(tmp_path / "search", grid())))
    return "search/best.yaml"


def resolved(ran: Any) -> dict[str, Any]:
    """The configuration that --dry-run printed."""
    assert ran.status == 0, ran.err
    return dict(yaml.safe_load(ran.out))


def test_pretrain_and_finetune_read_their_own_section(maep: Any, best: str) -> None:
    first = resolved(maep("pretrain", "--config", best, "--dry-run"))
    assert first["mask_ratio"] == PRETRAIN["mask_ratio"]
    assert first["loop"]["samples"] == 320
    ran = maep("finetune", "--config", best, "--loop.samples", 640, "--dry-run")
    then = resolved(ran)
    assert then["classifiers"] == FINETUNE["classifiers"]
    assert then["loop"]["samples"] == 640
    assert f"result: {Path('outputs/search/best/finetune/model')}" in ran.out  # not where pretraining went


def test_a_pipeline_with_named_sections_is_such_a_file(maep: Any) -> None:
    whole = resolved(maep("pretrain", "--config", "cifar10/pretrain", "--dry-run"))
    assert resolved(maep("pretrain", "--config", "cifar10/pipeline", "--dry-run")) == whole


def test_tracking_is_shared(maep: Any, tmp_path: Path) -> None:
    values = {"pretrain": PRETRAIN, "finetune": FINETUNE, "tracking": {"experiment": "mine"}}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(values))
    assert resolved(maep("finetune", "--config", "both.yaml", "--dry-run"))["tracking"]["experiment"] == "mine"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pretrain": PRETRAIN, "mask_ratio": 0.5}, "mask_ratio"),
        ({"pretrain": 3}, "pretrain"),
        ({"pretrain": {"mask_ration": 0.5}}, "'mask_ration'.*'mask_ratio'"),
        ({"finetune": FINETUNE}, "pretrain.*maep finetune"),
    ],
)
def test_an_ambiguous_file_is_refused(maep: Any, tmp_path: Path, values: dict[str, Any], said: str) -> None:
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(values))
    assert maep("pretrain", "--config", "odd.yaml", "--dry-run").is_mistake(said)
