"""`python -m maep.train.benchmark`: images/s of pretraining on this machine, time of a step by phase, loader speed.

    python -m maep.train.benchmark --preset B/16 --image_size 224 --batch_size 256 --steps 50

Needs PyTorch alone. Images are random, or with `--loader stream` those of `--data.root`. Further arguments override
keys of `maep pretrain`: `--loop.precision fp32 --loop.compile true --model.decoder_width 256`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from maep import config
from maep.data.config import LoaderConfig
from maep.data.image_set import ImageSet
from maep.data.stream.loaders import Images, Loader, loader_rate, open_images
from maep.data.stream.plan import Sampling
from maep.data.stream.resident import SyntheticImages
from maep.errors import UserError
from maep.models import flops
from maep.models.mae import MaskedAutoencoder
from maep.train.config import PretrainConfig
from maep.train.hardware import peak_flops, peak_memory_mib
from maep.train.loop.meter import Stopwatch
from maep.train.loop.run import batch_of, open_loader, pick_device
from maep.train.loop.step import TrainingStep, pick_dtype
from maep.train.objectives import Pretraining

Kind = Literal["resident", "stream", "synthetic"]
_WARMUP = 2
_TRIAL_S = 0.5


@dataclass(frozen=True)
class Measured:
    """The result of a measurement."""

    device: str
    precision: str
    batch_size: int
    steps: int
    parameters: int
    gflops_per_image: float
    """Of a training step, by formula (maep.models.flops)."""
    images_per_s: float
    peak_tflops: float
    """Peak of matrix products on this device, against which MFU is computed."""
    mfu: float
    split_s: dict[str, float]
    """Seconds of a step by phase."""
    loader_images_per_s: float
    """Of the loader alone."""
    loader_ratio: float
    """loader_images_per_s over the rate of steps without a loader: above 1, training does not wait for data."""
    peak_memory_mib: float


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the result; exit status 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m maep.train.benchmark", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--preset", default="S/16", help="sizes of the autoencoder: Ti, S, B or L, and the patch")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--loader", default="resident", choices=("resident", "stream", "synthetic"))
    parser.add_argument("--json", action="store_true")
    options, overrides = parser.parse_known_args(argv)
    values: dict[str, Any] = {
        "model": {"preset": options.preset, "image_size": options.image_size},
        "loop": {
            "batch_size": options.batch_size,
            "samples": options.batch_size * max(1, options.steps + _WARMUP),
            "device": options.device,
        },
    }
    try:
        settings = config.build(PretrainConfig, config.apply_overrides(values, overrides))
        measured = measure(settings, options.steps, options.loader)
    except UserError as error:
        print(f"maep.train.benchmark: {error}", file=sys.stderr)
        return 2
    print(json.dumps(dataclasses.asdict(measured)) if options.json else text(measured))
    return 0


def measure(settings: PretrainConfig, steps: int, kind: Kind = "synthetic") -> Measured:
    """Times `steps` training steps of `settings` in one process, after two steps of warm-up.

    `kind` synthetic repeats one batch of random images, the upper bound of any loader; `stream` reads the data set.
    """
    loop = settings.loop
    device = pick_device(loop.device)
    objective = Pretraining(MaskedAutoencoder(settings.model), settings.mask_ratio)
    update = TrainingStep(objective.to(device).to(memory_format=torch.channels_last).train(), loop, 1, device)
    loader = _open(settings, kind, device)
    watch = Stopwatch(device)

    with closing(loader.parts(0, _WARMUP + steps)) as parts:
        for number in range(_WARMUP + steps):
            if number == _WARMUP:
                _wait_for(device)
                watch.read()
                began = time.perf_counter()
            watch.start()
            batch = batch_of(next(parts), number, loop)
            watch.lap("data")
            update(batch, loop.lr, watch)
        _wait_for(device)
        seconds = (time.perf_counter() - began) / steps
    rate, split = loop.batch_size / seconds, watch.read()
    loading = loader_rate(loader, loop.batch_size, steps)
    without = loop.batch_size / max(1e-9, seconds - split.get("data", 0.0))
    cost, peak = flops.training(settings.model, settings.mask_ratio), peak_flops(device, update.dtype)
    return Measured(
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        precision=str(update.dtype).removeprefix("torch."),
        batch_size=loop.batch_size,
        steps=steps,
        parameters=flops.parameters(settings.model),
        gflops_per_image=cost / 1e9,
        images_per_s=rate,
        peak_tflops=peak / 1e12,
        mfu=rate * cost / peak,
        split_s=split,
        loader_images_per_s=loading,
        loader_ratio=loading / without,
        peak_memory_mib=peak_memory_mib(device),
    )


def estimate(settings: PretrainConfig) -> tuple[float, str]:
    """Images/s of training on this machine, and how they were estimated.

    Runs two steps of about a second in all. If a single image takes longer, uses the rate of matrix products instead.
    """
    device = pick_device(settings.loop.device)
    cost = flops.training(settings.model, settings.mask_ratio)
    possible = peak_flops(device, pick_dtype(settings.loop, device)) / cost
    images = min(settings.loop.batch_size, int(_TRIAL_S * possible))
    if images < 1:
        return possible, "at the rate of matrix products, which training does not quite reach"
    trial = replace(settings.loop, batch_size=images, samples=images, micro_batch=None, ema=None, compile=False)
    rate = measure(replace(settings, loop=trial), steps=2).images_per_s
    return rate, f"measured in two steps of {images} images"


def text(measured: Measured) -> str:
    """The result as text: a line for each value, and for the seconds of each phase."""
    values = dataclasses.asdict(measured)
    values |= {f"{phase}_s": seconds for phase, seconds in values.pop("split_s").items()}
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return "\n".join(f"{name:<20} {value}" for name, value in shown.items())


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _open(settings: PretrainConfig, kind: Kind, device: torch.device) -> Loader:
    """The loader to measure: of one batch of random images, or for kind stream of the data set."""
    loop, shape = settings.loop, settings.model.image_size
    noise = SyntheticImages("random", shape, ("none",))
    images: Images = noise
    if kind == "resident":
        pixels, numbers = noise.draw(loop.batch_size).numpy(), np.arange(loop.batch_size)
        images = ImageSet("random", "train", pixels, numbers * 0, numbers, noise.classes, numbers >= 0)
    elif kind == "stream":
        data = replace(settings.data, name="imagenet", image_size=shape[0])
        images = open_images(LoaderConfig(kind="stream"), data)
    return open_loader(images, settings.loader, Sampling(loop.batch_size, loop.seed, loop.augment), device)


if __name__ == "__main__":
    sys.exit(main())
