"""Example images of a model in training: image, model input, model output."""

from __future__ import annotations

import functools

import torch
from PIL import Image
from torchvision.utils import make_grid

from maep import seeding
from maep.artifact import Artifact
from maep.data.config import DataConfig
from maep.data.datasets import data_uri, load
from maep.data.image_set import to_float, to_uint8
from maep.data.sets import imagenet
from maep.models.build import build_model, load_weights
from maep.models.mae import MaskedAutoencoder, fold
from maep.storage import is_remote

_IMAGES, _SIDE = 8, 64


def reconstruction_strip(saved: Artifact, data: DataConfig) -> Image.Image | None:
    """Rows of eight `dev` images, model inputs and outputs; None for models other than autoencoders and purifiers.

    The input of an autoencoder is the visible patches (mask ratio as trained), that of a purifier the image with noise
    of standard deviation 8/255.
    """
    values = saved.config.get("model", {})
    if values.get("name") not in ("mae", "purifier", "conv"):
        return None
    with seeding.GLOBAL_GENERATOR:  # initial weights are drawn while a training step may be running
        model = load_weights(build_model(values), saved).eval()
    images = _shown(data, data_uri(data))
    keys = torch.arange(len(images))
    with torch.no_grad():
        if isinstance(model, MaskedAutoencoder):
            noise = seeding.uniform(keys, model.positions.shape[1])
            output = model(images, saved.config["train"]["mask_ratio"], noise)
            size, grid = model.config.patch_size, model.config.grid
            hidden = fold(output.mask[..., None].repeat(1, 1, size**2), grid, size)
            painted = model.unpatchify(output.patches, grid)
            rows = [
                images,
                torch.lerp(images, torch.full_like(images, 0.5), hidden),
                torch.lerp(images, painted, hidden),
            ]
        else:
            noise = seeding.normal(keys, images[0].numel()).view_as(images)
            given = (images + noise * 8 / 255).clamp(0, 1)
            rows = [images, given, model(given)]
    strip = to_uint8(make_grid(torch.cat(rows).clamp(0, 1), nrow=len(images), padding=0)[None])[0]
    return Image.fromarray(strip.numpy()).resize((len(images) * _SIDE, len(rows) * _SIDE), Image.Resampling.NEAREST)


@functools.lru_cache(maxsize=1)
def _shown(data: DataConfig, root: str) -> torch.Tensor:
    """float32 [8, 3, H, W] in [0, 1], fewer if dev has fewer; the same for each checkpoint of a run."""
    if not is_remote(root):
        images = load(data, "dev")
        return images.batch(range(min(_IMAGES, len(images))))[0]
    size = data.image_size or imagenet.IMAGE_SIZE
    return to_float(torch.from_numpy(imagenet.first_of_dev(root, _IMAGES, size, data.read_timeout_s)))
