"""Floating-point operations of a masked autoencoder, computed from its matrix products.

A product of [m, k] and [k, n] counts 2 m k n, as elsewhere (Kaplan et al. 2020, arXiv 2001.08361, table 1); norms,
activations and sums are left out, as is usual for MFU (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from maep.models.config import MaeConfig


def forward(config: MaeConfig, mask_ratio: float) -> float:
    """Operations of `masked_loss` on one image: hidden patches are not embedded, visible ones not predicted."""
    num_visible, num_hidden = _counts(config, mask_ratio)
    width, narrow, tokens = config.width, config.decoder_width, 1 + num_visible
    encoder = config.depth * _block(tokens, width, config.mlp_ratio)
    decoder = config.decoder_depth * _block(tokens + num_hidden, narrow, config.mlp_ratio)
    heads = 2 * tokens * width * narrow + 2 * num_hidden * narrow * _pixels(config)
    return _embedding(config, mask_ratio) + encoder + decoder + heads


def training(config: MaeConfig, mask_ratio: float) -> float:
    """Operations of one image's forward and backward pass.

    The backward pass of a product is two products of its size. The patch projection needs one: pixels need no gradient.
    """
    return 3 * forward(config, mask_ratio) - _embedding(config, mask_ratio)


def parameters(config: MaeConfig) -> int:
    """Number of parameters of a MaskedAutoencoder of this configuration."""
    pixels, width, narrow = _pixels(config), config.width, config.decoder_width
    embeddings = (pixels + 1) * width + width + (width + 1) * narrow + narrow + (narrow + 1) * pixels
    norms = 2 * width + 2 * narrow
    return embeddings + norms + _stack(config.depth, width, config) + _stack(config.decoder_depth, narrow, config)


def _counts(config: MaeConfig, mask_ratio: float) -> tuple[int, int]:
    """Numbers of visible and of hidden patches."""
    length = config.grid[0] * config.grid[1]
    num_visible = int(length * (1 - mask_ratio))
    return num_visible, length - num_visible


def _pixels(config: MaeConfig) -> int:
    return 3 * config.patch_size**2


def _embedding(config: MaeConfig, mask_ratio: float) -> float:
    return 2 * _counts(config, mask_ratio)[0] * _pixels(config) * config.width


def _block(tokens: int, width: int, mlp_ratio: float) -> float:
    projections = 2 * tokens * width * (4 * width + 2 * int(width * mlp_ratio))
    return projections + 4 * tokens**2 * width  # queries by keys, weights by values


def _stack(depth: int, width: int, config: MaeConfig) -> int:
    hidden = int(width * config.mlp_ratio)
    attention = (width + 1) * 3 * width + (width + 1) * width
    return depth * (attention + (width + 1) * hidden + (hidden + 1) * width + 4 * width)
