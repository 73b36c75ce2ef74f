from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_toys import Heard, Make, batch_at, weights

from maep import config
from maep.data.config import DataConfig
from maep.errors import ArtifactError, ConfigError
from maep.models.classifiers.load import load_classifier
from maep.models.conv import ConvPurifier
from maep.train import build_tasks
from maep.train.attack_mixture import MixtureConfig
from maep.train.build_tasks import pretraining, purification
from maep.train.config import LossConfig, TermConfig
from maep.train.loop.run import Task, run
from maep.train.objectives import Purification, _sizes

EPS = 32 / 255


def moved(task: Task) -> Purification:
    """The objective with a purifier that is not the identity, as after some training."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in task.objective.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    assert isinstance(task.objective, Purification)
    return task.objective


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        ((), {0: 2, 0.5: 2, 1: 2}),
        (((0.2, 0), (0.6, 1)), {0: 0, 0.2: 0, 0.3: 0.5, 0.4: 1, 0.6: 2, 1: 2}),
        (((0.5, 1), (0.5, 0)), {0: 2, 0.49: 2, 0.5: 0, 1: 0}),
        (((0, 1), (1, 0)), {0: 2, 0.25: 1.5, 1: 0}),
    ],
)
def test_term_weight_follows_its_schedule(schedule: Any, weights: dict[float, float]) -> None:
    term = TermConfig(2.0, schedule)
    for progress, weight in weights.items():
        assert term.at(progress) == pytest.approx(weight)


@pytest.mark.parametrize("count", [1, 2, 7, 32, 100])
def test_every_image_belongs_to_one_kind_of_the_mixture(count: int) -> None:
    mixture = (MixtureConfig("fgsm", 0.4), MixtureConfig("pgd", 0.4), MixtureConfig("none", 0.2))
    sizes = [size for _, size in _sizes(mixture, count)]
    assert sum(sizes) == count
    assert all(abs(size - kind.share * count) <= 2 for size, kind in zip(sizes, mixture, strict=True))


def test_mixture_sizes_survive_rounding() -> None:
    """0.29 x 100 is 28.999999999999996."""
    mixture = (MixtureConfig("fgsm", 0.29), MixtureConfig("pgd", 0.71))
    assert [size for _, size in _sizes(mixture, 100)] == [29, 71]


@pytest.mark.parametrize("mode", ["oblivious", "adaptive"])
def test_crafted_images_stay_within_budget_and_share(mode: str, finetune: Make) -> None:
    mixture = [{"name": "fgsm", "share": 0.25}, {"name": "pgd", "share": 0.5}, {"name": "none", "share": 0.25}]
    task = purification(finetune({"attacks": {"mode": mode, "eps": EPS, "mixture": mixture}}))
    objective, batch = moved(task), batch_at(task)
    attacked = objective.craft(batch).attacked
    assert attacked is not None
    moves = (attacked - batch.images).abs().amax(dim=(1, 2, 3))
    assert moves.max() <= EPS + 1e-6
    assert (moves[:24] > 0).all()
    assert (moves[24:] == 0).all()
    assert 0 <= attacked.min() <= attacked.max() <= 1
    assert not attacked.requires_grad


@pytest.mark.parametrize("size", [2, 4, 8])
def test_any_number_of_workers_crafts_the_same_images(size: int, finetune: Make) -> None:
    """Eight workers of four images each attack the same images by the same kinds as one worker of all."""
    mixture = [{"name": "fgsm", "share": 0.3}, {"name": "pgd", "share": 0.45}, {"name": "none", "share": 0.25}]
    task = purification(finetune({"attacks": {"eps": EPS, "mixture": mixture}}))
    objective, whole = moved(task), batch_at(task)
    together = objective.craft(whole).attacked
    assert together is not None
    for rank in range(size):
        part = batch_at(task, 0, rank, size)
        assert part.places.tolist() == list(range(rank, 32, size))
        attacked = objective.craft(part).attacked
        assert attacked is not None
        torch.testing.assert_close(attacked, together[part.places], rtol=0, atol=1e-6)


def test_batch_seeds_the_masks_of_a_randomised_purifier(finetune: Make) -> None:
    """Draws do not use torch's global generator, which no checkpoint keeps; another replay gets other masks."""
    model = {**finetune().model.__dict__, "mask_ratio": 0.5}
    task = purification(finetune({"model": model, "attacks": {"mode": "adaptive", "eps": EPS}, "noise": 0.0}))
    objective, losses = moved(task), []
    for seed, replay in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        crafted = objective.craft(batch_at(task))
        losses.append(float(objective(replace(crafted, replay=replay)).loss.detach()))
        assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attacks": {"eps": 8}}, "attacks: eps: "),
        ({"attacks": {"eps_range": [2, 16]}}, "attacks: eps_range: "),
        ({"attacks": {"mixture": [{"name": "pgd", "steps": [5, 3]}]}}, "steps: .*5, 3"),
        ({"attacks": {"mixture": [{"share": 1.5}, {"share": -0.5}]}}, "share: 1.5"),
        ({"noise": 16}, "noise: 16.0"),
        ({"classifier_shares": [0]}, "classifier_shares: "),
        ({"loss": {"masked_ratio": 1.5}}, "masked_ratio: 1.5"),
        ({"loss": {"pixel": {"weight": 0}, "kl": {"weight": 0}}}, "pixel"),
    ],
)
def test_invalid_values_are_refused(values: dict[str, Any], message: str, finetune: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune(values)


def test_schedule_may_disable_all_terms_for_a_while(finetune: Make, tmp_path: Path) -> None:
    loss = {"pixel": {"weight": 0}, "kl": {"weight": 1, "schedule": [[0.5, 0], [0.6, 1]]}}
    heard = Heard()
    run(purification(finetune({"loss": loss}, samples=128)), tmp_path, [heard])
    assert heard.steps[0].metrics["loss"] == 0
    assert heard.steps[-1].metrics["loss"] > 0


def test_budgets_are_drawn_from_their_range(finetune: Make) -> None:
    settings = finetune({"attacks": {"eps": EPS, "eps_range": [0.02, 0.1], "mixture": [{"name": "fgsm"}]}})
    task = purification(settings)
    objective, found = moved(task), []
    for step in range(40):
        batch = batch_at(task, step)
        attacked = objective.craft(batch).attacked
        assert attacked is not None
        found.append(float((attacked - batch.images).abs().max()))
    at_eps = [eps for eps in found if eps == pytest.approx(EPS, abs=1e-6)]
    drawn = [eps for eps in found if 0.02 - 1e-6 <= eps <= 0.1 + 1e-6]
    assert len(at_eps) + len(drawn) == 40
    assert min(len(at_eps), len(drawn)) >= 8  # half of the steps each
    assert len(set(drawn)) == len(drawn)


def test_classifiers_are_attacked_by_their_shares(finetune: Make, trained_classifier: Any) -> None:
    folder = str(trained_classifier.folder)
    task = purification(
        finetune(
            {
                "classifiers": [folder, folder],
                "classifier_shares": [3, 1],
                "attacks": {"mixture": [{"name": "fgsm"}]},
                "loss": {"kl": {"weight": 0}},
            }
        )
    )
    objective, calls = moved(task), [0, 0]
    for place in range(2):

        def count(*_: Any, place: int = place) -> None:
            calls[place] += 1

        objective.classifiers[place].register_forward_hook(count)
    for step in range(80):
        objective.craft(batch_at(task, step))
    assert sum(calls) == 80
    assert 48 <= calls[0] <= 72


def test_attacks_lower_accuracy_of_the_bare_classifier(finetune: Make, trained_classifier: Any) -> None:
    task = purification(finetune({"attacks": {"eps": EPS, "mixture": [{"name": "pgd", "steps": [10, 10]}]}}))
    batch = batch_at(task)
    attacked = moved(task).craft(batch).attacked
    classifier = load_classifier(str(trained_classifier.folder))
    with torch.no_grad():
        clean, robust = (
            float((classifier(images).argmax(1) == batch.labels).float().mean()) for images in (batch.images, attacked)
        )
    assert clean > 0.9
    assert robust < clean - 0.3


def test_an_adaptive_attack_goes_through_the_purifier(finetune: Make) -> None:
    """Both modes on one purifier: the adaptive attack raises the loss behind the purifier more than the oblivious."""
    losses = {}
    for mode in ("oblivious", "adaptive"):
        settings = finetune({"attacks": {"mode": mode, "eps": EPS, "mixture": [{"name": "pgd", "steps": [5, 5]}]}})
        task = purification(settings)
        objective, batch = moved(task), batch_at(task)
        passes: list[bool] = []
        objective.model.register_forward_hook(lambda _m, inputs, _o: passes.append(inputs[0].requires_grad))  # noqa: B023
        attacked = objective.craft(batch).attacked
        assert passes.count(True) == (5 if mode == "adaptive" else 0)
        assert all(parameter.grad is None for parameter in objective.parameters())
        assert objective.model.training
        with torch.no_grad():
            logits = objective.classifiers[0](objective.model(attacked))
        losses[mode] = float(nn.functional.cross_entropy(logits, batch.labels))
    assert losses["adaptive"] > losses["oblivious"]


@pytest.mark.parametrize("mode", ["oblivious", "adaptive"])
@pytest.mark.parametrize("model", ["purifier", "conv"])
def test_only_the_purifier_is_trained(
    mode: str, model: str, finetune: Make, conv_model: dict[str, Any], tmp_path: Path
) -> None:
    top: dict[str, Any] = {"attacks": {"mode": mode, "eps": EPS}, "loss": {"feature": {"weight": 1}}}
    task = purification(finetune(top | ({"model": conv_model} if model == "conv" else {}), samples=96))
    assert isinstance(task.objective, Purification)
    frozen = {name: value.clone() for name, value in task.objective.classifiers.state_dict().items()}
    trained = {name: value.clone() for name, value in task.objective.model.state_dict().items()}
    heard = Heard()
    run(task, tmp_path, [heard])
    assert set(heard.steps[0].headline) == {"loss", "pixel", "kl", "feature", "lr", "images_per_s"}
    after = task.objective.classifiers.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert not any(module.training for each in task.objective.classifiers for module in each.modules())
    assert not any(p.requires_grad for p in task.objective.classifiers.parameters())
    assert any(not torch.equal(value, trained[name]) for name, value in task.objective.model.state_dict().items())


TERMS: dict[str, dict[str, Any]] = {
    "l1": {"pixel": {"weight": 1}, "pixel_norm": "l1"},
    "l2": {"pixel": {"weight": 1}, "pixel_norm": "l2"},
    "masked": {"masked": {"weight": 1}},
    "feature": {"feature": {"weight": 1}},
    "kl": {"kl": {"weight": 1}},
}
NONE = {"pixel": {"weight": 0}, "kl": {"weight": 0}}


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_gives_a_gradient(term: str, finetune: Make) -> None:
    task = purification(finetune({"loss": NONE | TERMS[term]}))
    objective = moved(task)
    losses = objective(objective.craft(batch_at(task)))
    assert set(losses.parts) == {"pixel" if term in ("l1", "l2") else term}
    assert losses.loss > 0
    losses.loss.backward()
    slopes = [p.grad.abs().sum() for p in objective.model.parameters() if p.grad is not None]
    assert slopes
    assert sum(slopes) > 0
    assert all(p.grad is None for p in objective.classifiers.parameters())


def test_the_loss_is_the_weighted_sum_of_its_terms(finetune: Make) -> None:
    loss = {
        "pixel": {"weight": 2, "schedule": [[0, 0.5]]},
        "masked": {"weight": 3},
        "feature": {"weight": 5},
        "kl": {"weight": 7, "schedule": [[0.5, 0], [0.6, 1]]},
    }
    task = purification(finetune({"loss": loss}))
    objective = moved(task)
    found = objective(objective.craft(batch_at(task)))
    parts = {name: float(value) for name, value in found.parts.items()}
    expected = parts["pixel"] + 3 * parts["masked"] + 5 * parts["feature"]  # kl has weight 0 at the start
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_pixels_are_compared_before_the_clamp(finetune: Make) -> None:
    """An output outside [0, 1] must still get a gradient."""
    task = purification(finetune({"loss": NONE | TERMS["l1"]}))
    objective = task.objective
    assert isinstance(objective, Purification)
    model = objective.model
    final = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    assert final.bias is not None
    with torch.no_grad():
        final.bias.fill_(2.0)
    objective(objective.craft(batch_at(task))).loss.backward()
    assert final.bias.grad is not None
    assert (final.bias.grad > 0.1).all()


def test_noise_has_its_share_and_differs_between_replays(finetune: Make) -> None:
    task = purification(finetune({"noise": 0.1, "noise_share": 0.5}))
    objective = moved(task)
    noisy: list[float] = []
    for step in range(10):
        batch = batch_at(task, step)
        grey = torch.full_like(batch.images, 0.5)
        spread = (objective._noisy(grey, batch) - grey).flatten(1).std(dim=1)
        noisy += spread.tolist()
        assert torch.equal(objective._noisy(grey, batch), objective._noisy(grey, batch))
        other = replace(batch, images=grey, replay=1)
        assert not torch.equal(objective._noisy(grey, batch), objective._noisy(grey, other))
    share = sum(size > 0 for size in noisy) / len(noisy)
    assert 0.38 <= share <= 0.62
    assert 0.05 < max(noisy) < 0.115


def test_finetuning_starts_from_the_autoencoder(
    finetune: Make, unkilled_pretrain: Any, conv_model: dict[str, Any], tmp_path: Path
) -> None:
    start = unkilled_pretrain[0]
    task = purification(finetune({"init": str(start.folder)}))
    theirs = start.weights()
    mine = {k.removeprefix("mae."): v for k, v in task.objective.model.state_dict().items() if k.startswith("mae.")}
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[name], mine[name]) for name in theirs)
    assert task.config["train"]["init_sha256"] == start.sha256
    assert "init" not in task.config["train"]
    with pytest.raises(ConfigError, match=r"^init: conv "):
        purification(finetune({"init": str(start.folder), "model": conv_model}))
    wider = {"name": "purifier", "mae": start.config["model"] | {"width": 32}, "stem_channels": [4]}
    with pytest.raises(ConfigError, match=r"model\.mae\.width: 32, but the autoencoder at .* has 16"):
        purification(finetune({"init": str(start.folder), "model": wider}))
    with pytest.raises(ArtifactError, match="holds a classifier, not a purifier or the autoencoder that"):
        purification(finetune({"init": finetune().classifiers[0]}))
    with pytest.raises(ArtifactError, match=r"holds no MANIFEST\.json"):
        purification(finetune({"init": str(tmp_path)}))


def test_unsuitable_classifiers_are_refused(finetune: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="resnet57"):
        purification(finetune({"classifiers": ["resnet57"]}))
    for layers, said in (([nn.Linear(768, 4)], "4 classes"), ([nn.Unflatten(1, (768, 1))], "768, 1")):
        monkeypatch.setattr(
            build_tasks, "load_classifier", lambda *_, layers=layers: nn.Sequential(nn.Flatten(), *layers)
        )
        with pytest.raises(ConfigError, match=said):
            purification(finetune())


def test_conv_purifier_trains_in_the_same_loop(finetune: Make, conv_model: dict[str, Any], tmp_path: Path) -> None:
    settings = finetune({"model": conv_model}, samples=128)
    first, second = (run(purification(settings), tmp_path / name) for name in "ab")
    assert weights(first) == weights(second)
    assert isinstance(purification(settings).objective.model, ConvPurifier)
    assert first.config["model"]["name"] == "conv"


def test_loss_defaults() -> None:
    loss = config.build(LossConfig, {})
    assert (loss.terms["pixel"].weight, loss.pixel_norm, loss.terms["masked"].weight, loss.terms["kl"].weight) == (
        3.0,
        "l1",
        0.0,
        0.5,
    )


def test_pretraining_hides_mask_ratio(pretrain: Make) -> None:
    task = pretraining(pretrain({"mask_ratio": 0.75}))
    output = task.objective.model(batch_at(task).images, 0.75)
    assert task.images.name == DataConfig("digits").name
    assert (output.mask.sum(dim=1) == 12).all()
