"""Named sizes of masked autoencoders: `preset: S/16` is a ViT-S on patches of 16 pixels, at the given `image_size`.

Encoders are the ViTs' (Dosovitskiy et al. 2021, arXiv 2010.11929, table 1; Ti and S: Touvron et al. 2021, arXiv
2012.12877, table 1). The decoder depends on the image size, not on the encoder: from 128 pixels on MAE's own (He et al.
2022, section 4.1: 512 channels, 8 blocks, 16 heads), from 48 pixels on half as wide and deep, and below that 128
channels and 2 blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maep.errors import nearest

ENCODERS = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
"""Width, depth and heads."""

DECODERS = ((128, (512, 8, 16)), (48, (256, 4, 8)), (0, (128, 2, 4)))
"""Least shorter side of an image, and the decoder's width, depth and heads."""

_DEFAULT_SIDE = 32


def expand(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`values` of an autoencoder's section with `preset` replaced by the keys it stands for.

    Decoder keys that are given stay. Raises ValueError for a name that is not known, and for keys of the encoder
    that are given and say otherwise.
    """
    if "preset" not in values:
        return values
    given = {key: value for key, value in values.items() if key != "preset"}
    size, patch_size = _parsed(values["preset"])
    encoder = dict(zip(("width", "depth", "num_heads"), ENCODERS[size], strict=True)) | {"patch_size": patch_size}
    for key, value in encoder.items():
        if key in given and str(given[key]) != str(value):
            raise ValueError(f"preset: {values['preset']} has {key} {value}, not {given[key]} as given: drop one")
    side = _side(given.get("image_size", _DEFAULT_SIDE))
    decoder = next(sizes for start, sizes in DECODERS if side >= start)
    return encoder | dict(zip(("decoder_width", "decoder_depth", "decoder_heads"), decoder, strict=True)) | given


def _parsed(name: Any) -> tuple[str, int]:
    size, _, patch = str(name).partition("/")
    if size not in ENCODERS or not patch.isdigit() or int(patch) < 1:
        names = [f"{each}/{side}" for each in ENCODERS for side in (2, 4, 8, 14, 16, 32)]
        raise ValueError(f"preset: {name!r} is not known: {nearest(str(name), names)}")
    return size, int(patch)


def _side(image_size: Any) -> int:
    """The shorter side; a size that is none is refused where it is built."""
    sides = image_size if isinstance(image_size, list | tuple) else [image_size]
    return min((int(side) for side in sides if str(side).isdigit()), default=_DEFAULT_SIDE)
