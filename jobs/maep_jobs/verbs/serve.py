"""`maep serve`: run the endpoint until Ctrl-C; or measure the calibration of its suspicion score."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maep_jobs.arguments import Job, parse, parser, plan_text
from maep_jobs.terminal.standard_output import print_json
from maep_serve.config import ServeConfig

_EXAMPLES = """  maep serve --model bundled:cifar10 --classifier cifar10_resnet20
  maep serve --model models:/purifier@champion --port 8080 --num_replicas 2
  maep serve --model outputs/purifier/model --classifier cifar10_resnet20 --calibrate calibration.json
  curl --data-binary @image.png -H 'content-type: image/png' http://127.0.0.1:8000/v1/purify -o clean.png"""


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    made = parser("serve", "Serve a purifier over HTTP (loopback by default).", _EXAMPLES, output=False)
    made.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="measure clean dev images with the model and the classifier, write a file for --calibration, and exit",
    )
    job = parse(made, ServeConfig, argv, default="serve")
    settings = job.settings
    if job.options.dry_run:
        plan = f"serves {settings.model} at http://{settings.host}:{settings.port}"
        if job.options.calibrate is not None:
            plan = f"measures {settings.model} on clean dev images into {job.options.calibrate}"
        print(plan_text(job, [plan]), end="")
        return 0
    if job.options.calibrate is not None:
        return _calibrate(job)
    from maep_serve.ray.server import start

    server = start(settings, job.tracking)
    if job.options.json:
        print_json({"url": server.url, "purifier_sha256": server.purifier_sha256})
    else:
        print(f"{server.url}/  purifier {server.purifier_sha256[:12]}  (Ctrl-C to stop)", flush=True)
    server.wait()
    return 0


def _calibrate(job: Job[ServeConfig]) -> int:
    from maep.tracking.resolve import resolve
    from maep_serve.engine.calibration import measure
    from maep_serve.engine.suspicion import FALSE_POSITIVE_RATE, write

    settings = dataclasses.replace(job.settings, calibration=None)
    calibration = measure(resolve(settings.model, job.tracking), settings)
    write(calibration, job.options.calibrate)
    figures: dict[str, Any] = {
        "file": str(job.options.calibrate),
        "images": calibration.images,
        "num_images": calibration.num_images,
        "class_changed": len(calibration.changed),
        "false_positive_rate": FALSE_POSITIVE_RATE,
    }
    if job.options.json:
        print_json(figures)
    else:
        print(
            f"{figures['file']}: {figures['num_images']} clean images of {figures['images']}, of which"
            f" {figures['class_changed']} change class; {FALSE_POSITIVE_RATE:.0%} of clean images will be suspected"
        )
    return 0
