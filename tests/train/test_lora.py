"""Adapters on a trained purifier: few weights change, the rest is bit-identical, the result is an ordinary purifier."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import MAE, Heard, Make

from maep import artifact
from maep.artifact import Artifact
from maep.errors import ConfigError
from maep.models.build import build_model, load_purifier_artifact, load_weights
from maep.models.lora import merged, num_trained
from maep.train.build_tasks import purification
from maep.train.loop.run import Task, run

RANK = 4
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
ADAPTED = {f"mae.decoder_blocks.0.{layer}.weight" for layer in LAYERS}


@pytest.fixture(scope="module")
def purifier(finetune: Make, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A purifier of the digits, trained for some steps."""
    return run(purification(finetune()), tmp_path_factory.mktemp("purifier"))


@pytest.fixture(scope="module")
def adapting(finetune: Make, purifier: Artifact) -> Make:
    """The task of adapting it to dark digits on yellow paper; keywords change the adapters."""

    def make(loop: dict[str, Any] | None = None, **lora: Any) -> Task:
        values: dict[str, Any] = {"init": str(purifier.folder), "lora": {"rank": RANK, "alpha": 8} | lora}
        values["loss"] = {"pixel": {"weight": 10}, "kl": {"weight": 0}}
        task = purification(finetune(values, **(loop or {})))
        paper = (task.images.images[...] // 2 * [[[-1, -1, -1]]] + [[[250, 240, 130]]]).astype("uint8")  # type: ignore[index]
        return replace(task, images=replace(task.images, images=paper))

    return make


@pytest.fixture(scope="module")
def adapted(adapting: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Task, Heard]:
    """The result of an uninterrupted run, its task (whose model was trained in place), and its reports."""
    heard, task = Heard(), adapting({"samples": 1280, "lr": 1e-2}, dropout=0.1)
    return run(task, tmp_path_factory.mktemp("adapted"), [heard]), task, heard


def test_only_the_decoders_linear_layers_change(adapted: Any, purifier: Artifact) -> None:
    before, after = purifier.weights(), adapted[0].weights()
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == ADAPTED
    assert adapted[0].config["train"]["init_sha256"] == purifier.sha256
    assert adapted[0].config["train"]["lora"] == {"rank": RANK, "alpha": 8.0, "dropout": 0.1, "targets": ["decoder"]}
    assert adapted[0].config["model"] == purifier.config["model"]


def test_weight_change_has_the_rank_of_the_adapters(adapted: Any, purifier: Artifact) -> None:
    width, hidden = MAE["decoder_width"], 4 * MAE["decoder_width"]
    sides = (width + 3 * width) + (width + width) + 2 * (width + hidden)
    assert num_trained(adapted[1].objective.model) == RANK * sides
    before, after = purifier.weights(), adapted[0].weights()
    for name in ADAPTED:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4) == RANK
    assert f"rank {RANK} on the decoder: {RANK * sides:,} numbers" in (adapted[0].folder / "card.md").read_text()


def test_merged_and_unmerged_adapters_give_the_same_images(adapted: Any) -> None:
    result, task, _ = adapted
    images, _ = task.images.batch(range(16))
    unmerged, plain = task.objective.model.eval(), load_purifier_artifact(result)
    assert any(".lora_A." in name for name in unmerged.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(images), unmerged(images), rtol=0, atol=1e-6)


def test_peft_merges_to_the_same_weights(adapted: Any) -> None:
    task = adapted[1]
    ours = merged(task.objective.model.state_dict(), task.config["train"]["lora"]["alpha"])
    for layer in LAYERS:
        adapter = task.objective.model.get_submodule(f"mae.decoder_blocks.0.{layer}")
        theirs = adapter.base_layer.weight + adapter.get_delta_weight("default")
        torch.testing.assert_close(ours[f"mae.decoder_blocks.0.{layer}.weight"], theirs, rtol=0, atol=1e-7)
    assert merged(ours, 8.0).keys() == ours.keys()
    assert all(torch.equal(merged(ours, 8.0)[name], ours[name]) for name in ours)


def test_loss_falls_on_the_new_images(adapted: Any) -> None:
    losses = [step.metrics["pixel"] for step in adapted[2].steps]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_stopped_adaptation_resumes_to_identical_bits(adapting: Make, adapted: Any, tmp_path: Path) -> None:
    settings = {"samples": 1280, "lr": 1e-2}
    with pytest.raises(KeyboardInterrupt):
        run(adapting(settings, dropout=0.1), tmp_path, [Heard(stop_after_checkpoints=3)])
    saved = max((tmp_path / "checkpoints").glob("0*"))
    checkpoint = artifact.read(saved)
    load_weights(build_model(checkpoint.config["model"]), checkpoint)  # what looks at a checkpoint needs no peft
    heard = Heard()
    assert run(adapting(settings, dropout=0.1), tmp_path, [heard]).sha256 == adapted[0].sha256
    assert heard.steps[0].samples_seen > int(saved.name)


def test_new_purifier_trains_all_but_the_autoencoder(finetune: Make, unkilled_pretrain: Any, tmp_path: Path) -> None:
    """Its stem and head have no weights yet that could be adapted; its last layer is zero at first."""
    start = unkilled_pretrain[0]
    values = {"init": str(start.folder), "lora": {"rank": RANK, "targets": ["decoder", "encoder"]}}
    result = run(purification(finetune(values, samples=64)), tmp_path)
    before, after = start.weights(), result.weights()
    changed = {name for name in before if not torch.equal(before[name], after[f"mae.{name}"])}
    assert changed == {f"{blocks}.0.{layer}.weight" for blocks in ("blocks", "decoder_blocks") for layer in LAYERS}
    assert after["change.output.weight"].abs().max() > 0


def test_without_adapters_all_weights_of_a_purifier_train(finetune: Make, purifier: Artifact) -> None:
    task = purification(finetune({"init": str(purifier.folder)}))
    assert all(
        torch.equal(value, purifier.weights()[name]) for name, value in task.objective.model.state_dict().items()
    )
    assert task.config["train"].get("lora") is None


def test_invalid_adapters_are_refused(
    finetune: Make, conv_model: dict[str, Any], unkilled_pretrain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {"init": str(unkilled_pretrain[0].folder), "lora": {}}
    for values, message in (
        ({"lora": {}}, "lora: .*init"),
        (start | {"model": conv_model}, "lora: conv"),
        (start | {"lora": {"rank": 0}}, "lora: rank: 0"),
        (start | {"lora": {"targets": []}}, "lora: targets: "),
        (start | {"lora": {"targets": ["head"]}}, r"lora\.targets\[0\]: 'head'"),
    ):
        with pytest.raises(ConfigError, match=message):
            finetune(values)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"lora: the package peft is not installed: pip install 'maep\[lora\]'"):
        purification(finetune(start))
