"""The masked autoencoder (He et al. 2022, arXiv 2111.06377), on plain pixels in [0, 1].

A ViT encoder takes the visible patches only; a light decoder takes all positions and predicts every patch.
Shapes: B images, L patches, D width, P = patch_size, patches are `[B, L, P * P * 3]` in row, column, channel order.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maep.models.config import MaeConfig


class Encoded(NamedTuple):
    """Output of the encoder, input of the decoder."""

    tokens: Tensor
    """float [B, 1 + visible, D]: the class token, then the visible patches in shuffled order."""
    mask: Tensor
    """float [B, L]: 1 where a patch is hidden, 0 where it is visible."""
    order: Tensor
    """int64 [B, L]: positions in the image in shuffled order, the visible patches first, then the hidden ones."""
    restore: Tensor
    """int64 [B, L]: the inverse permutation, the place of each patch in the shuffled order."""
    grid: tuple[int, int]


class MaeOutput(NamedTuple):
    """Output of one masked forward pass."""

    loss: Tensor
    """Scalar: mean squared error over the hidden patches (over all patches if none is hidden)."""
    patches: Tensor
    """float [B, L, P * P * 3]: the predicted pixels of every patch."""
    mask: Tensor
    """float [B, L]: 1 where a patch is hidden."""


class MaskedAutoencoder(nn.Module):
    """MAE: `forward(images float [B, 3, H, W] in [0, 1], mask_ratio)` gives the loss, all patches and the mask.

    H and W may be any multiples of the patch size: positions are sine-cosine, evaluated at fractional coordinates
    on grids other than the one that the model was trained on.
    """

    def __init__(self, config: MaeConfig) -> None:
        super().__init__()
        self.config = config
        norm = partial(nn.LayerNorm, eps=config.norm_eps)
        block = partial(Block, mlp_ratio=config.mlp_ratio, qkv_bias=True, norm_layer=norm)
        pixels = config.patch_size**2 * 3
        self.patch_embed = nn.Linear(pixels, config.width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.blocks = nn.ModuleList(block(config.width, config.num_heads) for _ in range(config.depth))
        self.norm = norm(config.width)
        self.decoder_embed = nn.Linear(config.width, config.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_width))
        self.decoder_blocks = nn.ModuleList(
            block(config.decoder_width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = norm(config.decoder_width)
        self.decoder_pixels = nn.Linear(config.decoder_width, pixels)
        self.positions: Tensor
        self.decoder_positions: Tensor
        self.register_buffer("positions", sincos_positions(config.width, config.grid), persistent=False)
        self.register_buffer("decoder_positions", sincos_positions(config.decoder_width, config.grid), persistent=False)
        self.apply(_initialise)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def patchify(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, L, P * P * 3]. Raises ValueError unless the patch size divides H and W."""
        size = self.config.patch_size
        batch, channels, height, width = images.shape
        if height % size or width % size:
            raise ValueError(f"patches of {size}x{size} do not divide images of {height}x{width}: pad or resize them")
        rows, columns = height // size, width // size
        patches = images.reshape(batch, channels, rows, size, columns, size)
        return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, size * size * channels)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, L, P * P * C] -> [B, C, H, W]; `grid` holds the rows and columns of patches."""
        return fold(patches, grid, self.config.patch_size)

    def encode(self, images: Tensor, mask_ratio: float = 0.0, noise: Tensor | None = None) -> Encoded:
        """Runs the encoder on the visible patches.

        The patches of highest `noise` are hidden: float [B, L], drawn uniformly if None.
        """
        grid = images.shape[2] // self.config.patch_size, images.shape[3] // self.config.patch_size
        patches, positions = self.patchify(images), self._positions("positions", grid)
        batch, length, _ = patches.shape
        if mask_ratio > 0:
            if noise is None:
                noise = torch.rand(batch, length, device=images.device)
            num_visible = int(length * (1 - mask_ratio))
            order = noise.argsort(dim=1, stable=True)
            restore = order.argsort(dim=1)
            mask = (restore >= num_visible).to(images.dtype)
            visible = order[:, :num_visible]  # hidden patches are not embedded
            tokens = self.patch_embed(_rows(patches, visible)) + positions[0][visible]
        else:
            order = restore = torch.arange(length, device=images.device).expand(batch, -1)
            mask = torch.zeros(batch, length, device=images.device, dtype=images.dtype)
            tokens = self.patch_embed(patches) + positions
        tokens = torch.cat([self.class_token.expand(batch, -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return Encoded(self.norm(tokens), mask, order, restore, grid)

    def decode(self, encoded: Encoded) -> Tensor:
        """Float [B, L, decoder_width]: a feature vector for every patch, visible or hidden, in image order."""
        features: Tensor = self.decoder_norm(self._decoded(encoded))[:, 1:]
        return features if _num_hidden(encoded) == 0 else _rows(features, encoded.restore)

    def _decoded(self, encoded: Encoded) -> Tensor:
        """Float [B, 1 + L, decoder_width]: the class token and every patch, in the shuffled order.

        Attention does not depend on the order of tokens, so they are not put back in image order here.
        """
        tokens = self.decoder_embed(encoded.tokens)
        positions, num_hidden = self._positions("decoder_positions", encoded.grid), _num_hidden(encoded)
        if num_hidden:
            positions = positions[0][encoded.order]
        num_visible = positions.shape[1] - num_hidden
        parts = [tokens[:, :1], tokens[:, 1:] + positions[:, :num_visible]]
        if num_hidden:
            parts.append(self.mask_token + positions[:, num_visible:])
        tokens = torch.cat(parts, dim=1)
        decoded: Tensor = tokens
        for block in self.decoder_blocks:
            decoded = block(decoded)
        return decoded

    def forward(
        self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None, target: Tensor | None = None
    ) -> MaeOutput:
        """One masked forward pass. `target` (None: the images) holds the pixels to predict.

        `masked_loss` computes the loss alone, at lower cost.
        """
        encoded = self.encode(images, mask_ratio, noise)
        patches = self.decoder_pixels(self.decode(encoded))
        error = (patches - self.patchify(images if target is None else target)).square().mean(dim=-1)
        mask = encoded.mask
        loss = (error * mask).sum() / mask.sum() if mask_ratio > 0 else error.mean()
        return MaeOutput(loss, patches, mask)

    def masked_loss(
        self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None, target: Tensor | None = None
    ) -> Tensor:
        """The loss of `forward`, a scalar, for 0 < `mask_ratio` < 1; predicts the pixels of hidden patches only."""
        encoded = self.encode(images, mask_ratio, noise)
        num_hidden = _num_hidden(encoded)
        assert num_hidden, "no patch is hidden"
        predicted = self.decoder_pixels(self.decoder_norm(self._decoded(encoded)[:, -num_hidden:]))
        wanted = _rows(self.patchify(images if target is None else target), encoded.order[:, -num_hidden:])
        return F.mse_loss(predicted, wanted)  # each image hides equally many patches, so this is their mean

    def _positions(self, name: str, grid: tuple[int, int]) -> Tensor:
        stored: Tensor = getattr(self, name)
        if grid == self.config.grid:
            return stored
        return sincos_positions(stored.shape[-1], grid, self.config.grid).to(stored)


def _num_hidden(encoded: Encoded) -> int:
    return encoded.order.shape[1] + 1 - encoded.tokens.shape[1]


def _rows(table: Tensor, chosen: Tensor) -> Tensor:
    """[B, L, D] and int64 [B, K] -> [B, K, D]: the chosen rows of each image. Copies whole rows, unlike `gather`."""
    batch, length, width = table.shape
    first = torch.arange(0, batch * length, length, device=table.device)[:, None]
    return table.reshape(-1, width).index_select(0, (chosen + first).flatten()).view(batch, chosen.shape[1], width)


def fold(patches: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """[B, L, size * size * C] -> [B, C, rows * size, columns * size]: each patch becomes a square."""
    rows, columns = grid
    batch, _, values = patches.shape
    channels = values // size**2
    squares = patches.reshape(batch, rows, columns, size, size, channels)
    return squares.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * size, columns * size)


def sincos_positions(width: int, grid: tuple[int, int], trained_grid: tuple[int, int] | None = None) -> Tensor:
    """float32 [1, L, width]: fixed positions; the first half of the channels encodes the column, the second the row.

    On a grid other than `trained_grid`, coordinates are scaled to the range of the trained grid, so that a patch keeps
    its relative position in the image.
    """
    trained_grid = trained_grid or grid
    rows, columns = (
        np.arange(count, dtype=np.float64) * (trained / count)
        for count, trained in zip(grid, trained_grid, strict=True)
    )
    frequency = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))

    def encode(coordinates: np.ndarray) -> np.ndarray:
        angles = np.outer(coordinates.ravel(), frequency)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    column_of, row_of = np.meshgrid(columns, rows)
    table = np.concatenate([encode(column_of), encode(row_of)], axis=1)
    return torch.from_numpy(table).float()[None]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
