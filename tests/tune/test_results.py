"""A search read from its folder: the table, best.yaml, and folders without a search."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from searches import FINETUNE, NUM_IMAGES, PRETRAIN, grid, settings, trial, write

from maep.errors import ArtifactError, ConfigError, DataError
from maep.tune import record, results
from maep.tune.results import BEST, TABLE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "search", grid())


def test_table_has_every_trial(folder: Path) -> None:
    results.write(results.read(folder))
    table = pq.read_table(folder / TABLE)
    assert table.column_names[0] == "trial_id"
    assert table["trial_id"].to_pylist() == [each.trial_id for each in grid()]
    row = table.to_pylist()[4]
    assert (row["settings.mask_ratio"], row["settings.patch_size"], row["status"]) == (0.5, 4, "done")
    assert (row["adaptive_accuracy.right"], row["adaptive_accuracy.images"]) == (225, NUM_IMAGES)
    assert row["adaptive_accuracy.low"] < row["adaptive_accuracy"] < row["adaptive_accuracy.high"]
    assert json.loads(row["configuration"])["finetune"]["classifiers"] == FINETUNE["classifiers"]
    assert table["reason"].to_pylist()[-1] == "loss is NaN at step 12"
    assert table["oblivious_accuracy"].null_count == table.num_rows  # a column all the same, of numbers
    assert str(table.schema.field("oblivious_accuracy").type) == "double"


def test_settings_of_mixed_types_share_a_column(tmp_path: Path) -> None:
    kinds = [{"a": 1, "b": [1, 2], "c": None}, {"a": 0.5, "b": "x", "c": True}, {"d": {"name": "conv"}}]
    found = results.table([trial(number, values) for number, values in enumerate(kinds)])
    assert found["settings.a"].to_pylist() == [1.0, 0.5, None]
    assert found["settings.b"].to_pylist() == ["[1, 2]", '"x"', None]
    assert found["settings.c"].to_pylist() == [None, True, None]
    assert found["settings.d"].to_pylist() == [None, None, '{"name": "conv"}']


def test_best_yaml_has_a_section_for_each_verb(folder: Path) -> None:
    results.write(results.read(folder))
    text = (folder / BEST).read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {"pretrain": PRETRAIN, "finetune": FINETUNE}
    assert "004-test" in text
    assert "45.0 % [40.7, 49.4]" in text


def test_limits_of_the_search_decide_the_best(tmp_path: Path) -> None:
    asked = settings(objectives=["adaptive_accuracy", "latency_ms"], limits={"latency_ms": 2.3})
    result = results.read(write(tmp_path, grid(), asked))
    assert result.best is not None
    assert result.best.number == 1  # 4 has 2.4 ms
    assert result.objectives == ["adaptive_accuracy", "latency_ms", "clean_accuracy"]
    assert {each.number for each in result.front} == {4, 1, 5, 2}


def test_search_without_best_trial_writes_no_best_yaml(tmp_path: Path) -> None:
    result = results.read(write(tmp_path, grid()[-1:]))
    assert [path.name for path in results.write(result)] == [TABLE]
    with pytest.raises(ConfigError, match="adaptive_accuracy"):
        results.winner(result)


def test_a_winner_whose_purifier_was_not_kept_is_named(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="004-test"):
        results.winner(results.read(folder))


def test_space_of_fixed_settings_has_their_values(tmp_path: Path) -> None:
    fixed = [{"mask_ratio": 0.5, "patch_size": 8}, {"mask_ratio": 0.25, "patch_size": 2}, {"model": "conv"}]
    asked = settings(space={}, fixed=fixed)
    result = results.read(write(tmp_path, [trial(i, each) for i, each in enumerate(fixed)], asked))
    assert {key: axis.values for key, axis in result.space.items()} == {"mask_ratio": (0.25, 0.5), "patch_size": (2, 8)}


def test_folder_without_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"search\.yaml"):
        results.read(tmp_path)
    with pytest.raises(DataError, match="--resume"):
        results.read(write(tmp_path, []))


@pytest.mark.parametrize("text", ["", "{}", '{"trial_id": 1', "[]"])
def test_unreadable_record_is_named(folder: Path, text: str) -> None:
    path = record.folder(folder, "004-test") / record.TRIAL
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"004-test/trial\.json"):
        results.read(folder)
    assert not (folder / TABLE).exists()
