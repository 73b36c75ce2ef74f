"""Images/s of pretraining, ours over a plain PyTorch loop around transformers' ViTMAEForPreTraining, on one thread.

Same sizes, batch, mask ratio, dtype and learning rate; the loop is what one writes: forward, backward, clip, AdamW.
Both take turns of a few steps in one process; seconds are this process's processor time, which other work on the
machine does not lengthen as it does the clock. `compiled` is ours with `loop.compile: true`, which the loop could
have too; its ratio is printed and not held to anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from figures import held
from torch import nn

from maep import config
from maep.models import flops
from maep.models.mae import MaskedAutoencoder
from maep.train.batch import Batch
from maep.train.benchmark import _open
from maep.train.config import PretrainConfig
from maep.train.loop.meter import Stopwatch
from maep.train.loop.run import batch_of
from maep.train.loop.step import TrainingStep
from maep.train.objectives import Pretraining

CPU = torch.device("cpu")
ROUNDS, STEPS = 5, 2
SHARE = 0.8

Run = Callable[[], object]
"""One training step."""


def settings(preset: str, image_size: int, batch_size: int, decoder: tuple[int, int, int]) -> PretrainConfig:
    width, depth, heads = decoder
    values: dict[str, Any] = {
        "model": {
            "preset": preset,
            "image_size": image_size,
            "decoder_width": width,
            "decoder_depth": depth,
            "decoder_heads": heads,
            "norm_eps": 1e-12,
        },
        "loop": {"batch_size": batch_size, "samples": batch_size, "augment": False, "device": "cpu"},
    }
    return config.build(PretrainConfig, values)


def ours(chosen: PretrainConfig, batch: Batch, compiled: bool = False) -> Run:
    objective = Pretraining(MaskedAutoencoder(chosen.model), chosen.mask_ratio)
    loop = replace(chosen.loop, compile=compiled)
    update = TrainingStep(objective.to(memory_format=torch.channels_last).train(), loop, 1, CPU)
    watch = Stopwatch(CPU)
    return lambda: update(batch, loop.lr, watch)


def theirs(chosen: PretrainConfig, batch: Batch) -> Run:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    mae, loop = chosen.model, chosen.loop
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=mae.image_size[0],
            patch_size=mae.patch_size,
            hidden_size=mae.width,
            num_hidden_layers=mae.depth,
            num_attention_heads=mae.num_heads,
            intermediate_size=int(mae.width * mae.mlp_ratio),
            decoder_hidden_size=mae.decoder_width,
            decoder_num_hidden_layers=mae.decoder_depth,
            decoder_num_attention_heads=mae.decoder_heads,
            decoder_intermediate_size=int(mae.decoder_width * mae.mlp_ratio),
            mask_ratio=chosen.mask_ratio,
            norm_pix_loss=False,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=loop.lr, betas=loop.betas, weight_decay=loop.weight_decay)
    images = batch.images.contiguous()

    def step() -> object:
        optimizer.zero_grad()
        loss = model(images).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def product_rate() -> float:
    """fp32 operations a second of processor time; `peak_flops` goes by the clock, as a run's own rate does."""
    left = torch.full((1024, 1024), 0.5)
    fastest = float("inf")
    for _ in range(8):
        start = time.process_time()
        left @ left
        fastest = min(fastest, time.process_time() - start)
    return 2 * 1024**3 / fastest


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("preset", "image_size", "batch_size", "decoder", "asked", "floor"),
    [("Ti/4", 32, 128, (128, 2, 4), 1.3, 1.0), ("S/16", 224, 16, (256, 4, 8), 1.15, 1.15)],
)
@pytest.mark.filterwarnings("ignore")  # dynamo's own, under `compiled`
def test_faster_than_a_plain_loop(
    preset: str, image_size: int, batch_size: int, decoder: tuple[int, int, int], asked: float, floor: float
) -> None:
    """`asked` times the loop's rate, or 0.8 of the rate of fp32 matrix products in the same run; never below `floor`.

    For Ti at 32 px 1.3 times the loop is not reached: three quarters of the loop's own time are the matrix products
    that both have to make.
    """
    torch.set_num_threads(1)
    chosen = settings(preset, image_size, batch_size, decoder)
    batch = batch_of(next(_open(chosen, "resident", CPU).parts(0, 1)), 0, chosen.loop)
    runs = {"ours": ours(chosen, batch), "loop": theirs(chosen, batch), "compiled": ours(chosen, batch, True)}
    peak = product_rate()
    seconds = dict.fromkeys(runs, float("inf"))
    for each in runs.values():
        each()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.process_time()
            for _ in range(STEPS):
                run()
            seconds[name] = min(seconds[name], (time.process_time() - start) / STEPS)
    cost = batch_size * flops.training(chosen.model, chosen.mask_ratio)
    print(f"\n{preset} at {image_size} px, batch {batch_size}, products at {peak / 1e9:.1f} GFLOP/s:")
    for name, took in seconds.items():
        print(
            f"  {name}: {batch_size / took:.2f} images/s, {cost / took / peak:.2f} of the products' rate,"
            f" ours is {took / seconds['ours']:.2f} times that"
        )
    reached, share = seconds["loop"] / seconds["ours"], cost / seconds["ours"] / peak
    if share >= SHARE:
        print(f"asked for: {asked:g} times the loop or {SHARE:g} of the products; reached {reached:.3f}, {share:.3f}")
    else:
        held(f"{preset} at {image_size} px, over the loop,", reached, asked, floor)
