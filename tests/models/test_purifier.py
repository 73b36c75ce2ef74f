from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maep import config
from maep.errors import ConfigError
from maep.models.classifiers.load import CifarResNet
from maep.models.conv import ConvPurifier
from maep.models.families.conv import ConvConfig
from maep.models.families.purifier import PurifierConfig
from maep.models.purifier import Purifier, defend

MAE = {"width": 16, "depth": 1, "num_heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
STEM = {"stem_channels": [4, 8], "stem_blocks": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "stem": STEM,
    "one level": {"stem_channels": [4], "stem_blocks": 1},
    "three levels": {"stem_channels": [4, 4, 8], "stem_blocks": 1},
    "tokens": {"stem_channels": []},
    "pixels": {"residual": False},
    "masked stem": STEM | {"mask_ratio": 0.5},
    "masked tokens": {"stem_channels": [], "mask_ratio": 0.5},
    "masked pixels": {"residual": False, "mask_ratio": 0.5, "num_masks": 2},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
CONV = {"channels": [4, 8, 8], "blocks": 1}


def purifier(moved: bool = True, **values: Any) -> Purifier:
    torch.manual_seed(0)
    values.setdefault("mae", MAE)
    return move(Purifier(config.build(PurifierConfig, values)), moved)


def conv(moved: bool = True, **values: Any) -> ConvPurifier:
    torch.manual_seed(0)
    return move(ConvPurifier(config.build(ConvConfig, CONV | values)), moved)


def move(model: Any, moved: bool) -> Any:
    """Away from the identity, where most gradients are zero."""
    if moved:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def batch(*size: int) -> Tensor:
    return torch.rand(2, 3, *(size or (32, 32)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", ["stem", "one level", "three levels", "tokens"])
def test_residual_purifiers_start_at_the_identity(variant: str) -> None:
    assert torch.equal(purifier(moved=False, **VARIANTS[variant])(batch()), batch())
    assert torch.equal(conv(moved=False)(batch()), batch())


@every_variant
def test_shape_and_range(variant: str) -> None:
    model = purifier(**VARIANTS[variant])
    for size in [(32, 32), (64, 32), (8, 24), (4, 4)]:
        images = batch(*size)
        purified = model(images)
        assert purified.shape == images.shape
        assert purified.dtype == torch.float32
        assert 0 <= purified.min() <= purified.max() <= 1
    assert model.unclamped(batch()).shape == (2, 3, 32, 32)


def test_rectangular_training_size_and_odd_patches() -> None:
    model = purifier(mae=MAE | {"image_size": [24, 36], "patch_size": 6}, **STEM)
    assert (model.image_size, model.stride) == ((24, 36), 6)
    assert model(batch(24, 36)).shape == (2, 3, 24, 36)
    assert model(batch(12, 6)).shape == (2, 3, 12, 6)


@every_variant
def test_randomised_declares_whether_two_calls_differ(variant: str) -> None:
    model = purifier(**VARIANTS[variant])
    assert model.randomised == variant.startswith("masked")
    assert torch.equal(model(batch()), model(batch())) != model.randomised


@every_variant
def test_the_global_seed_decides_the_masks(variant: str) -> None:
    model = purifier(**VARIANTS[variant])
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(model(batch()))
    assert torch.equal(*results)


def test_num_masks_are_averaged_before_clamping() -> None:
    model = purifier(**STEM, mask_ratio=0.5, num_masks=3)
    torch.manual_seed(5)
    averaged = model(batch())
    torch.manual_seed(5)
    single = purifier(**STEM, mask_ratio=0.5)
    single.load_state_dict(model.state_dict())
    torch.manual_seed(5)
    passes = torch.stack([single.unclamped(batch()) for _ in range(3)])
    torch.testing.assert_close(averaged, passes.mean(dim=0).clamp(0, 1))
    assert passes.std(dim=0).max() > 1e-3


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith("masked")])
def test_hidden_patches_do_not_leak(variant: str) -> None:
    """Pixels of patches that the mask hides change nothing in the output; pixels that it shows do."""
    model = purifier(**VARIANTS[variant] | {"num_masks": 1})
    images = batch()
    torch.manual_seed(11)
    wanted = model.unclamped(images)
    torch.manual_seed(11)
    mask = model.mae.encode(images, model.config.mask_ratio).mask.bool()
    for hidden, leaks in [(mask, False), (~mask, True)]:
        patches = model.mae.patchify(images)
        patches[hidden] = 1 - patches[hidden]
        torch.manual_seed(11)
        found = model.unclamped(model.mae.unpatchify(patches, (8, 8)))
        assert torch.equal(found, wanted) != leaks


def test_hidden_patches_are_filled_in_by_the_autoencoder() -> None:
    """At the start the change is zero: what is seen comes out as it was, what is hidden as the MAE paints it."""
    model = purifier(moved=False, **STEM, mask_ratio=0.5)
    images = batch()
    torch.manual_seed(2)
    found = model.mae.patchify(model.unclamped(images))
    torch.manual_seed(2)
    output = model.mae(images, 0.5)
    hidden = output.mask.bool()
    torch.testing.assert_close(found[hidden], output.patches[hidden])
    assert torch.equal(found[~hidden], model.mae.patchify(images)[~hidden])


@every_variant
def test_gradients_reach_every_parameter_in_use(variant: str) -> None:
    model = purifier(**VARIANTS[variant])
    model.unclamped(batch()).square().mean().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    unused = set()
    if not model.randomised:  # nothing is hidden: no mask token
        unused.add("mae.mask_token")
        if model.config.residual:  # nothing is painted: no pixel head
            unused |= {"mae.decoder_pixels.weight", "mae.decoder_pixels.bias"}
    assert without == unused


def test_gradients_reach_every_parameter_of_the_unet() -> None:
    model = conv()
    model.unclamped(batch()).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


@pytest.mark.parametrize("channels", [[4], [4, 8], [4, 8, 8, 8]])
def test_unet_levels_shape_and_range(channels: list[int]) -> None:
    model = conv(channels=channels)
    assert model.stride == 2 ** (len(channels) - 1)
    for size in [(32, 32), (16, 40), (model.stride, model.stride)]:
        purified = model(10 * batch(*size) - 5)
        assert purified.shape == (2, 3, *size)
        assert 0 <= purified.min() <= purified.max() <= 1
    assert not model.randomised
    assert torch.equal(model(batch()), model(batch()))


@pytest.mark.parametrize("model", [purifier(**STEM), purifier(residual=False), conv()], ids=["stem", "pixels", "conv"])
def test_output_is_independent_of_batch_composition(model: nn.Module) -> None:
    together = model(batch())
    alone = torch.cat([model(image[None]) for image in batch()])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("made", [lambda: purifier(**STEM), lambda: purifier(**STEM, mask_ratio=0.5), conv])
def test_defend_is_differentiable_end_to_end(made: Any) -> None:
    model, classifier = made().train(), CifarResNet(8).train()
    defended = defend(classifier, model)
    assert not any(module.training for module in defended.modules())
    images = batch().requires_grad_()
    logits = defended(images)
    assert logits.shape == (2, 10)
    logits.logsumexp(dim=1).sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_defend_is_the_classifier_on_the_purified_images() -> None:
    model, classifier = conv(), CifarResNet(8).eval()
    assert torch.equal(defend(classifier, model)(batch()), classifier(model(batch())))


@pytest.mark.parametrize("made", [lambda: purifier(**STEM), lambda: purifier(residual=False), conv])
def test_channels_last_gives_the_same(made: Any) -> None:
    plain = defend(CifarResNet(8), made())
    wanted = plain(batch())
    fast = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = batch().to(memory_format=torch.channels_last).requires_grad_()
    found = fast(images)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    found.sum().backward()
    assert images.grad is not None


def test_gradient_of_a_purifier_is_its_derivative() -> None:
    """Finite differences in float64: no step of the pass is cut off from the gradient."""
    for model in (purifier(**STEM).double(), conv().double()):
        images = (0.2 + 0.6 * batch(8, 8).double())[:1].requires_grad_()
        direction = torch.randn_like(images)
        value = model.unclamped(images).square().sum()
        (slope,) = torch.autograd.grad(value, images)
        step = 1e-6
        with torch.no_grad():
            ahead, behind = (model.unclamped(images + s * direction).square().sum() for s in (step, -step))
        torch.testing.assert_close((slope * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio: 1.0 must be in"),
        ({"mask_ratio": -0.1}, "mask_ratio"),
        ({"num_masks": 0}, "num_masks: 0"),
        ({"num_masks": 4}, "num_masks: 4 must be at least 1, and 1 where mask_ratio is 0"),
        ({"stem_channels": [4, 8, 16, 32]}, "stem_channels: 4 levels need a patch_size that is a multiple of 8"),
        ({"stem_channels": [4, 0]}, "stem_channels"),
        ({"stem_blocks": -1}, "stem_blocks"),
        ({"mae": {"patch_size": 7}}, r"mae: patch_size: 7 does not divide image_size 32x32"),
        ({"stem_chanels": []}, "did you mean 'stem_channels'"),
    ],
)
def test_inconsistent_purifier_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.build(PurifierConfig, values, "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": []}, "channels"),
        ({"channels": [4, 0]}, "channels"),
        ({"blocks": 0}, "blocks"),
        ({"image_size": [30, 32]}, "3 levels need an image_size that is a multiple of 4"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_inconsistent_unet_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.build(ConvConfig, values, "model")


def test_levels_are_not_checked_without_a_stem() -> None:
    """`residual: false` uses no stem, so its default levels must not refuse an odd patch."""
    model = purifier(residual=False, mae=MAE | {"image_size": [9, 9], "patch_size": 3})
    assert model(batch(9, 9)).shape == (2, 3, 9, 9)
