from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maep import artifact, config
from maep.errors import ArtifactError, ConfigError
from maep.models.build import build_model, load_purifier_artifact
from maep.models.config import MaeConfig
from maep.models.mae import MaskedAutoencoder, sincos_positions

SMALL = {"width": 16, "depth": 1, "num_heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


def small(**values: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(config.build(MaeConfig, SMALL | values)).eval()


@pytest.mark.parametrize(
    ("size", "patch"), [((32, 32), 4), ((16, 48), 8), ((6, 9), 3), ((10, 4), 1), ((224, 128), 32), ((35, 21), 7)]
)
def test_any_rectangle_and_patch_size(size: tuple[int, int], patch: int) -> None:
    model = small(image_size=size, patch_size=patch)
    images = torch.rand(2, 3, *size)
    output = model(images, 0.5)
    num_patches = (size[0] // patch) * (size[1] // patch)
    assert output.patches.shape == (2, num_patches, patch * patch * 3)
    assert output.mask.sum(dim=1).tolist() == [num_patches - int(num_patches * 0.5)] * 2
    assert model.unpatchify(output.patches, model.config.grid).shape == images.shape
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize(("size", "patch"), [((12, 20), 4), ((6, 9), 3), ((4, 8), 1)])
def test_unpatchify_inverts_patchify(size: tuple[int, int], patch: int) -> None:
    model = small(image_size=size, patch_size=patch)
    images = torch.rand(3, 3, *size)
    patches = model.patchify(images)
    assert torch.equal(model.unpatchify(patches, model.config.grid), images)
    second = patches[:, 1].view(3, patch, patch, 3)  # row, column, channel of the patch right of the first
    assert torch.equal(second.permute(0, 3, 1, 2), images[:, :, :patch, patch : 2 * patch])


@pytest.mark.parametrize("mask_ratio", [0.0, 0.01, 0.25, 0.5, 0.75, 0.99])
def test_mask_counts(mask_ratio: float) -> None:
    output = small()(torch.rand(3, 3, 32, 32), mask_ratio)
    visible = int(64 * (1 - mask_ratio))
    assert output.mask.sum(dim=1).tolist() == [64 - visible] * 3
    assert set(output.mask.unique().tolist()) <= {0.0, 1.0}


def test_patches_of_highest_noise_are_hidden() -> None:
    noise = torch.rand(2, 64)
    mask = small().encode(torch.rand(2, 3, 32, 32), 0.75, noise).mask
    for row in range(2):
        assert noise[row][mask[row] == 1].min() > noise[row][mask[row] == 0].max()


def test_deterministic_under_given_noise_and_random_without() -> None:
    model, images, noise = small(), torch.rand(2, 3, 32, 32), torch.rand(2, 64)
    first, second = (model(images, 0.5, noise) for _ in range(2))
    assert torch.equal(first.patches, second.patches)
    assert not torch.equal(model(images, 0.5).mask, model(images, 0.5).mask)


def test_loss_is_the_error_of_the_hidden_patches() -> None:
    model, images, target = small(), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    output = model(images, 0.75, target=target)
    hidden = output.mask.bool()
    wanted = (output.patches[hidden] - model.patchify(target)[hidden]).square().mean()
    torch.testing.assert_close(output.loss, wanted)
    everything = model(images, 0.0, target=target)
    torch.testing.assert_close(everything.loss, (everything.patches - model.patchify(target)).square().mean())


@pytest.mark.parametrize("mask_ratio", [0.25, 0.75])
def test_masked_loss_matches_forward_in_value_and_gradient(mask_ratio: float) -> None:
    """`masked_loss` embeds only what is seen and predicts only what is hidden; `forward` does both for all."""
    model = small(decoder_depth=2).double()
    images, target = torch.rand(2, 3, 32, 32, dtype=torch.float64), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    noise = torch.rand(2, 64)
    gradients = []
    for loss in (
        model(images, mask_ratio, noise, target=target).loss,
        model.masked_loss(images, mask_ratio, noise, target=target),
    ):
        model.zero_grad()
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_features_are_in_image_order() -> None:
    """A decoder without blocks gives each seen patch a feature of its own; its place must be the patch's."""
    model = small(decoder_depth=0)
    images, noise = torch.rand(2, 3, 32, 32), torch.rand(2, 64)
    encoded = model.encode(images, 0.5, noise)
    features = model.decode(encoded)
    hidden = model.decoder_norm(model.mask_token + model.decoder_positions)[0]
    for row in range(2):
        places = encoded.mask[row].bool()
        torch.testing.assert_close(features[row][places], hidden[places])
        assert (features[row][~places] - hidden[~places]).abs().amax(dim=1).min() > 1e-4


def test_attention_is_fused() -> None:
    """PyTorch's scaled_dot_product_attention, and none of it written out."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        small().masked_loss(torch.rand(2, 3, 32, 32), 0.75).backward()
    names = {event.key for event in seen.key_averages()}
    assert "aten::scaled_dot_product_attention" in names
    assert not {"aten::softmax", "aten::_softmax", "aten::bmm"} & names


def test_hidden_pixels_do_not_reach_the_prediction() -> None:
    model, images, noise = small(), torch.rand(1, 3, 32, 32), torch.rand(1, 64)
    output = model(images, 0.75, noise)
    patches = model.patchify(images)
    patches[output.mask.bool()] = 0
    changed = model(model.unpatchify(patches, model.config.grid), 0.75, noise)
    assert torch.equal(changed.patches, output.patches)


def test_positions_are_distinct() -> None:
    """The prediction of an image whose patches are all alike differs only by place; two equal places do not exist."""
    table = sincos_positions(16, (5, 7))[0]
    assert table.shape == (35, 16)
    assert torch.cdist(table, table).add(torch.eye(35)).min() > 0.05


def test_positions_scale_with_the_image() -> None:
    trained = (4, 6)
    table = sincos_positions(16, trained).view(4, 6, 16)
    doubled = sincos_positions(16, (8, 12), trained).view(8, 12, 16)
    torch.testing.assert_close(doubled[::2, ::2], table)
    halved = sincos_positions(16, (2, 3), trained).view(2, 3, 16)
    torch.testing.assert_close(halved, table[::2, ::2])
    wide = sincos_positions(16, (4, 12), trained).view(4, 12, 16)
    torch.testing.assert_close(wide[:, ::2], table)
    tripled = sincos_positions(16, (12, 18), trained).view(12, 18, 16)
    torch.testing.assert_close(tripled[3::6, 3::6], doubled[2::4, 2::4])


def test_untrained_sizes_run() -> None:
    model = small(image_size=(16, 16))
    for size in [(32, 32), (16, 40), (8, 4)]:
        output = model(torch.rand(1, 3, *size), 0.5)
        assert output.patches.shape[1] == size[0] * size[1] // 16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.usefixtures("plain_attention")
def test_other_dtypes(dtype: torch.dtype) -> None:
    output = small().to(dtype)(torch.rand(1, 3, 64, 32, dtype=dtype), 0.5)
    assert output.patches.dtype == output.loss.dtype == dtype


def test_gradients_reach_every_parameter() -> None:
    model = small()
    model(torch.rand(2, 3, 32, 32), 0.5).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 5}, r"patch_size: 5 does not divide image_size 32x32: one of \[1, 2, 4, 8, 16, 32\]"),
        ({"image_size": [24, 36], "patch_size": 8}, r"24x36: one of \[1, 2, 3, 4, 6, 12\]"),
        ({"patch_size": 0}, "patch_size: 0"),
        ({"image_size": 0}, "image_size 0x0"),
        ({"width": 18}, "width: 18"),
        ({"num_heads": 3}, "width: 16 .*num_heads: 3"),
        ({"decoder_width": 6}, "decoder_width: 6"),
        ({"decoder_heads": 0}, "decoder_width: 8"),
        ({"depth": 0}, "depth"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"norm_eps": -1}, "norm_eps"),
        ({"patchsize": 4}, "did you mean 'patch_size'"),
    ],
)
def test_inconsistent_configurations_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.build(MaeConfig, SMALL | values, "model")
    assert "\n" not in str(caught.value)


def test_build_refuses_an_unknown_model() -> None:
    with pytest.raises(ArtifactError, match="did you mean 'purifier'"):
        build_model({"name": "purifer"})


def _purifier(folder: Path, change: object = None) -> artifact.Artifact:
    values = {"name": "conv", "channels": [4, 8], "blocks": 1}
    weights = build_model(values).state_dict()
    if change is not None:
        weights = change(weights)  # type: ignore[operator]
    return artifact.write(folder, "purifier", {"model": values}, weights, "card")


def test_purifier_artifact_loads_frozen_and_equal(tmp_path: Path) -> None:
    written = _purifier(tmp_path / "p")
    model = load_purifier_artifact(written)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, written.weights()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {name: t for name, t in w.items() if name != "stem.bias"}, "stem.bias"),
        (lambda w: w | {"more": torch.zeros(1)}, "more"),
        (lambda w: w | {"stem.bias": torch.zeros(7)}, "stem.bias"),
        (lambda w: w | {"stem.bias": torch.full((4,), torch.nan)}, "'stem.bias' hold NaN"),
    ],
)
def test_weights_unlike_the_configuration_are_refused(tmp_path: Path, change: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        load_purifier_artifact(_purifier(tmp_path / "p", change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{}, {"mask_ratio": 0.5}, {"stem_channels": [4]}, {"residual": False}], ids=str)
def test_an_empty_batch_stays_one(values: dict[str, object]) -> None:
    mae = SMALL | {"image_size": [16, 16], "patch_size": 4}
    model = build_model({"name": "purifier", "mae": mae, "stem_channels": [], "residual": True} | values)
    assert model(torch.rand(0, 3, 16, 16)).shape == (0, 3, 16, 16)


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = artifact.write(tmp_path / "c", "classifier", {}, {"a": torch.zeros(1)}, "card")
    with pytest.raises(ArtifactError, match="holds a classifier, not a purifier"):
        load_purifier_artifact(other)
    odd = artifact.write(tmp_path / "o", "purifier", {"modell": {}}, {"a": torch.zeros(1)}, "card")
    with pytest.raises(ArtifactError, match="model"):
        load_purifier_artifact(odd)
