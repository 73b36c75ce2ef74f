"""The protocol: what it measures, what it leaves behind, and that interruption and workers change nothing."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_toys import Linear, Rounding, robust
from registering import registered

from maep import artifact, config, registry
from maep.data import lists
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.errors import ArtifactError, ConfigError, DataError
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.cost import Cost
from maep.evaluate.protocol.run import EvaluationProgress, evaluate
from maep.evaluate.results import rows, summary
from maep.evaluate.results.summary import Result
from maep.models.config import MaeConfig
from maep.models.families.purifier import PurifierConfig
from maep.models.purifier import Purifier


def test_every_image_has_a_row_for_every_attack(result: Result, purifier: artifact.Artifact) -> None:
    table = result.rows().to_pandas()
    counts = table.groupby(["purifier", "threat", "eps", "attack"]).size()
    assert (counts == 24).all()
    threats = table.groupby("purifier")["threat"].agg(set)
    assert threats["jpeg-q50"] == {"clean", "oblivious", "bpda"}
    assert threats["conv"] == threats["none"] == {"clean", "oblivious", "adaptive"}
    assert set(table["index"]) == set(lists.named("digits-dev").indices[:24])
    assert set(table[table["purifier"] == "conv"]["purifier_sha256"]) == {purifier.sha256}
    assert (table["change"] <= table["eps"] + 1e-6).all()
    assert (table["correct"] == (table["prediction"] == table["label"])).all()


def test_oblivious_images_are_the_same_for_every_defence(result: Result) -> None:
    table = result.rows().to_pandas()
    oblivious = table[table["threat"] == "oblivious"]
    changes = oblivious.pivot_table(index=["attack", "index"], columns="purifier", values="change")
    assert (changes.nunique(axis=1) == 1).all()


def test_cascade_attacks_only_images_still_right(result: Result) -> None:
    table = result.rows().to_pandas()
    keyed = table[(table["purifier"] == "none") & (table["eps"] == 2 / 255)].set_index(["attack", "index"])
    clean = table[(table["purifier"] == "none") & (table["threat"] == "clean")].set_index("index")["correct"]
    first, second = keyed.loc["PGD-20"], keyed.loc["APGD-CE-50"]
    assert (first["inherited"] == ~clean[first.index]).all()
    assert (second["inherited"] == ~first.loc[second.index, "correct"]).all()
    assert not (second["correct"] & ~first.loc[second.index, "correct"]).any()


def test_interrupted_evaluation_resumes_and_repeats_nothing(
    small: EvaluateConfig, purifier: artifact.Artifact, result: Result, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop_at(count: int) -> None:
        seen: list[EvaluationProgress] = []

        def report(progress: EvaluationProgress) -> None:
            seen.append(progress)
            if len(seen) == count:
                raise Stop

        with pytest.raises(Stop):
            evaluate(small, {"conv": purifier}, tmp_path / "out", report)

    stop_at(5)
    stop_at(6)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").iterdir()}
    assert not (tmp_path / "out" / summary.RESULT).exists()
    seen: list[EvaluationProgress] = []
    resumed = evaluate(small, {"conv": purifier}, tmp_path / "out", seen.append)
    assert seen[0].done > 10
    assert seen[-1].done == seen[-1].total
    assert seen[-1].eta_seconds == 0
    assert parts
    assert resumed.rows().equals(result.rows())
    assert resumed.values["images_sha256"] == result.values["images_sha256"]
    again: list[EvaluationProgress] = []
    assert evaluate(small, {"conv": purifier}, tmp_path / "out", again.append).values == resumed.values
    assert not again


@pytest.mark.timeout(600)  # two processes start, which on a busy machine is most of it
def test_number_of_workers_changes_no_row(
    small: EvaluateConfig, purifier: artifact.Artifact, result: Result, tmp_path: Path
) -> None:
    own_cache = replace(small, num_workers=2, cache=str(tmp_path / "cache"))
    assert evaluate(own_cache, {"conv": purifier}, tmp_path / "out").rows().equals(result.rows())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_evaluation_gives_the_same_rows(
    small: EvaluateConfig, purifier: artifact.Artifact, result: Result, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    killed = replace(small, num_workers=2, cache=str(tmp_path / "cache"))
    (tmp_path / "run.py").write_text(
        "import json, sys\n"
        "from maep import config\n"
        "from maep.evaluate.protocol.run import EvaluateConfig, evaluate\n"
        "if __name__ == '__main__':\n"
        "    values = json.loads(sys.argv[1])\n"
        "    evaluate(config.build(EvaluateConfig, values), {'conv': sys.argv[2]}, sys.argv[3],"
        " lambda p: print(p.done, flush=True))\n"
    )
    words = json.dumps(config.to_dict(killed)), str(purifier.folder), str(tmp_path / "out")
    with subprocess.Popen([sys.executable, str(tmp_path / "run.py"), *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(chance.randrange(4, 25)):  # the first 3, the oblivious images, are done only together
            process.stdout.readline()
        time.sleep(chance.random() * 0.1)  # not to wait for anything: a moment inside a unit
        process.send_signal(signal.SIGKILL)
    seen: list[EvaluationProgress] = []
    resumed = evaluate(replace(killed, num_workers=1), {"conv": purifier}, tmp_path / "out", seen.append)
    assert resumed.rows().equals(result.rows())
    assert len(seen) < seen[-1].total


def test_linear_classifier_has_its_closed_form_accuracy(small: EvaluateConfig, tmp_path: Path) -> None:
    budgets = (4 / 255, 16 / 255, 40 / 255)
    linear = replace(
        small,
        classifiers=("import:evaluate_toys:linear",),
        baselines=("none",),
        num_images=120,
        batch_size=60,
        shard_size=60,
        eps=budgets,
        oblivious_eps=16 / 255,
    )
    found = evaluate(linear, {}, tmp_path / "out")
    images = lists.pick(load(DataConfig("digits"), "dev"), lists.named("digits-dev")).select(range(120))
    pixels, labels = images.batch(range(120))
    known = {eps: int(robust(Linear(), pixels, labels, eps).sum()) for eps in budgets}
    name = "import:evaluate_toys:linear"
    assert {eps: found.figure("none", name, "adaptive", eps).num_correct for eps in budgets} == known
    assert known[budgets[0]] > known[budgets[2]]
    assert found.figure("none", name, "oblivious", 16 / 255).num_correct == known[16 / 255]


def test_limit_on_the_adaptive_attacks(small: EvaluateConfig, purifier: artifact.Artifact, tmp_path: Path) -> None:
    limited = replace(small, num_images=20, num_adaptive=8, baselines=("none",))
    found = evaluate(limited, {"conv": purifier}, tmp_path / "out")
    assert found.figure("conv", "digits_resnet8", "adaptive", 8 / 255).num_images == 8
    assert found.figure("conv", "digits_resnet8", "oblivious", 8 / 255).num_images == 20


def test_masked_gradients_are_flagged_by_the_oblivious_figure(
    small: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Masked(Rounding):
        differentiable = True

    registered(monkeypatch, registry.baselines, "masked", Masked)
    wide = replace(small, baselines=("none", "masked"), eps=(24 / 255, 32 / 255), oblivious_eps=24 / 255)
    found = evaluate(wide, {}, tmp_path / "out")
    assert list(found.unreliable) == ["masked"]
    (reason,) = (line for line in found.unreliable["masked"] if line.startswith("adaptive is not above oblivious"))
    count = {t: found.figure("masked", "digits_resnet8", t, 24 / 255).num_correct for t in ("adaptive", "oblivious")}
    assert f"{count['adaptive']} of 24 " in reason
    assert f" {count['oblivious']} " in reason


def test_dependence_on_batch_size_is_flagged(small: EvaluateConfig, tmp_path: Path) -> None:
    """The rows are made 12 at a time, the battery's 7 at a time."""
    spec = "import:evaluate_toys:CountsItsBatch"
    found = evaluate(replace(small, classifiers=(spec,), baselines=("none",), num_probes=7), {}, tmp_path / "out")
    assert any(reason.startswith("eps 0 is clean") for reason in found.unreliable["none"])


def test_cost_includes_cached_attacked_images(small: EvaluateConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    few = replace(small, num_images=12, baselines=("none",), eps=(8 / 255,), cache=str(cache))
    made, cached = (evaluate(few, {}, tmp_path / name).values for name in ("made", "cached"))
    crafting = {label: cost["forward_passes"] for label, cost in made["attacked_images_cost"].items()}
    name = "digits_resnet8"
    assert crafting == {f"{name} FGSM": 12, f"{name} PGD-20": 12 * 21, f"{name} APGD-CE-20": 12 * 21}
    assert cached["attacked_images_cost"] == made["attacked_images_cost"]
    assert cached["forward_passes"] == made["forward_passes"]
    for path in cache.rglob("cost-*.json"):
        path.unlink()
    old = evaluate(few, {}, tmp_path / "old").values
    assert set(old["attacked_images_cost"].values()) == {None}
    assert old["forward_passes"] == made["forward_passes"] - sum(crafting.values())
    assert old["thread_seconds"] > 0


def test_indivisible_image_size_is_a_one_line_error(small: EvaluateConfig, tmp_path: Path) -> None:
    mae = MaeConfig(image_size=(20, 20), patch_size=5, width=8, depth=1, num_heads=2, decoder_width=8, decoder_heads=2)
    described = PurifierConfig(mae=mae, stem_channels=(4,), stem_blocks=1)
    weights = Purifier(described).state_dict()
    wide = artifact.write(tmp_path / "wide", "purifier", {"model": config.to_dict(described)}, weights, "A test's.")
    with pytest.raises(ConfigError, match="16x16") as caught:
        evaluate(replace(small, sizes="interpolate"), {"wide": wide}, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_folder_of_another_configuration_is_refused(small: EvaluateConfig, result: Result, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in result.folder.iterdir()}
    with pytest.raises(ConfigError, match="seed"):
        evaluate(replace(small, seed=1), {}, result.folder)
    assert {path.name: path.read_bytes() for path in result.folder.iterdir()} == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        evaluate(small, {}, tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"classifiers": ("import:evaluate_toys:probabilities",)}, ConfigError, "returns probabilities: return logits"),
        ({"classifiers": ("import:evaluate_toys:five_classes",)}, DataError, "out of range .* knows 5 classes"),
        ({"classifiers": ("import:evaluate_toys:damaged",)}, ConfigError, "NaN or infinity"),
        ({"classifiers": ("cifar10_resnet21",)}, ConfigError, "did you mean 'cifar10_resnet20'"),
        ({"images": "digits-deb"}, ConfigError, "did you mean 'digits-dev'"),
        ({"baselines": ("jpeg-50",)}, ConfigError, "did you mean 'jpeg-q50'"),
        ({"images": "cifar10-dev-500"}, DataError, "is of cifar10 dev, not of digits dev"),
    ],
)
def test_invalid_evaluations_are_one_line_errors(
    small: EvaluateConfig, tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        evaluate(replace(small, **change), {}, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_damaged_purifier_is_refused(small: EvaluateConfig, purifier: artifact.Artifact, tmp_path: Path) -> None:
    weights = purifier.weights()
    weights["output.weight"] = torch.full_like(weights["output.weight"], np.nan)
    damaged = artifact.write(tmp_path / "nan", "purifier", purifier.config, weights, "Damaged.")
    with pytest.raises(ArtifactError, match="NaN or infinity"):
        evaluate(small, {"conv": damaged}, tmp_path / "out")


def test_config_in_plain_values() -> None:
    built = config.build(EvaluateConfig, {"eps": ["1/255", "4/255"], "baselines": ["none"], "num_workers": 2})
    assert built.eps == (1 / 255, 4 / 255)
    for wrong, message in [
        ({"baselines": ["blurr"]}, "did you mean 'blur'"),
        ({"eps": [0]}, "budgets must be in"),
        ({"batch_size": 0}, "at least 1"),
        ({"preset": "fast"}, "preset: 'fast' is not known"),
    ]:
        with pytest.raises(ConfigError, match=message):
            config.build(EvaluateConfig, wrong)


def test_part_round_trip(result: Result) -> None:
    part = result.rows().slice(0, 5)
    table, cost = rows.decode_part(rows.encode_part(part, Cost(12, 0.5)))
    assert table.equals(part)
    assert cost == Cost(12, 0.5)


@pytest.mark.shared_data
def test_cifar10_without_defence_and_behind_jpeg(shared_data: Path, tmp_path: Path) -> None:
    cifar = EvaluateConfig(
        data=DataConfig("cifar10", root=str(shared_data)),
        num_images=64,
        batch_size=64,
        shard_size=64,
        num_probes=16,
        baselines=("none", "jpeg-q50"),
        num_adaptive=16,
        eps=(8 / 255,),
        cache=str(tmp_path / "cache"),
    )
    found = evaluate(cifar, {}, tmp_path / "out")
    name = "cifar10_resnet20"
    assert found.figure("none", name, "clean").accuracy >= 0.85
    assert found.figure("none", name, "oblivious", 8 / 255).accuracy <= 0.02
    assert found.figure("none", name, "adaptive", 8 / 255).accuracy == 0
    assert 0.2 <= found.figure("jpeg-q50", name, "oblivious", 8 / 255).accuracy <= 0.6
    assert found.figure("jpeg-q50", name, "bpda", 8 / 255).accuracy <= 0.1
    assert not found.unreliable
