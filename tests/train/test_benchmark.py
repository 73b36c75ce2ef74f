"""`python -m maep.train.benchmark`, the costs that a dry run prints, and the measured rate of the device."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from maep import config
from maep.models import flops
from maep.train import benchmark
from maep.train.config import PretrainConfig
from maep.train.hardware import peak_flops, peak_memory_mib
from maep.train.loop.meter import Stopwatch
from maep_jobs import cli
from maep_jobs.config_files import find

TINY = ("--preset", "Ti/16", "--image_size", "32", "--batch_size", "8", "--steps", "3", "--device", "cpu")
TINY += ("--model.depth", "12", "--model.decoder_depth", "1")


@pytest.mark.parametrize("loader", ["resident", "synthetic"])
def test_benchmark_measures_a_step(loader: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([*TINY, "--loader", loader, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images_per_s"] > 0
    assert found["loader_ratio"] > 0
    assert found["mfu"] > 0
    assert set(found["split_s"]) == {"data", "forward", "backward", "optimizer"}
    assert sum(found["split_s"].values()) <= 8 / found["images_per_s"] * 1.001
    assert found["mfu"] == pytest.approx(
        found["images_per_s"] * found["gflops_per_image"] / found["peak_tflops"] / 1000, rel=1e-6
    )
    assert (found["device"], found["precision"]) == (f"cpu, {torch.get_num_threads()} threads", "float32")


def test_benchmark_prints_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([*TINY]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("images_per_s", "mfu", "forward_s", "loader_ratio", "parameters"))


@pytest.mark.slow
def test_benchmark_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "maep.train.benchmark", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "images_per_s" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preset", "XL/16"), "model.preset: 'XL/16' is not known"),
        (("--preset", "S/16", "--image_size", "40"), "patch_size: 16 does not divide image_size 40x40"),
        (("--model.decoder_with", "256"), "unknown key 'model.decoder_with': did you mean 'decoder_width'?"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("maep.train.benchmark: ")
    assert message in err
    assert err.count("\n") == 1


def test_dry_run_prints_costs(capsys: pytest.CaptureFixture[str]) -> None:
    settings = config.load(PretrainConfig, find("digits/pretrain"), ())
    assert cli.main(["pretrain", "--config", "digits/pretrain", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"# model: {flops.parameters(settings.model):,} parameters\n" in said
    assert "GFLOP forward" in said
    found = re.search(r"# time: (\d+):(\d\d):(\d\d) in this process at (\S+) images/s \(measured in two steps of", said)
    assert found, said
    hours, minutes, seconds, rate = (float(each.replace(",", "")) for each in found.groups())
    length = 3600 * hours + 60 * minutes + seconds
    assert length == pytest.approx(settings.loop.samples / rate, abs=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the GPU that the plan asks for")
def test_dry_run_works_without_the_configured_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "--config", "digits/pretrain", "--loop.device", "cuda", "--dry-run"]) == 0
    assert "loop.device: cuda is not available" in capsys.readouterr().out


def test_large_model_is_estimated_from_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "peak_flops", lambda *_: 1e9)
    settings = config.build(PretrainConfig, {"model": {"preset": "L/16", "image_size": 224}})
    rate, how = benchmark.estimate(settings)
    assert rate == pytest.approx(1e9 / flops.training(settings.model, 0.75))
    assert "rate of matrix products" in how


def test_matrix_product_rate_is_measured_once() -> None:
    rate = peak_flops(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e13
    assert peak_flops(torch.device("cpu"), torch.float32) == rate
    assert 50 < peak_memory_mib(torch.device("cpu")) < 1e6


def test_stopwatch_sums_laps_and_averages_over_steps() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(3):
        watch.start()
        for phase in ("forward", "backward", "forward"):
            torch.ones(50_000).sum()
            watch.lap(phase)
    means: dict[str, Any] = watch.read()
    assert set(means) == {"forward", "backward"}
    assert all(0 < seconds < 10 for seconds in means.values())
    assert watch.read() == {}
