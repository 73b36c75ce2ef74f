"""`maep serve`: start the endpoint and keep it until Ctrl-C, or calibrate its suspicion score."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from maep_jobs.arguments import Job, JobParser
from maep_serve.config import ServeConfig

_EXAMPLES = """  maep serve --model bundled:cifar10 --classifier cifar10_resnet20
  maep serve --model models:/purifier@champion --port 8080 --num_replicas 2
  maep serve --model outputs/purifier/model --classifier cifar10_resnet20 --calibrate calibration.json
  curl --data-binary @image.png -H 'content-type: image/png' http://127.0.0.1:8000/v1/purify -o clean.png"""


def parser() -> JobParser[ServeConfig]:
    """The verb's options."""
    made = JobParser(
        "serve", ServeConfig, "Serve a purifier over HTTP, by default on loopback.", _EXAMPLES, output=False
    )
    made.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="measure clean dev images with model and classifier, write FILE for the key calibration, and exit",
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    job = parser().parse_job(argv, default="serve")
    settings, file = job.settings, job.options.calibrate
    if job.options.dry_run:
        if file is not None:
            return job.print_plan(f"measure {settings.model} on clean dev images, and write {file}")
        return job.print_plan(f"serve {settings.model} at http://{settings.host}:{settings.port}")
    if file is not None:
        return _calibrate(job, file)
    from maep_serve.ray.server import start

    server = start(settings, job.tracking)
    values = {"url": server.url, "purifier_sha256": server.purifier_sha256}
    job.print_result(values, f"{server.url}/  purifier {server.purifier_sha256[:12]}  (Ctrl-C stops it)")
    server.wait()
    return 0


def _calibrate(job: Job[ServeConfig], file: Path) -> int:
    from maep.tracking.resolve import resolve
    from maep_serve.engine.calibration import measure
    from maep_serve.engine.suspicion import FALSE_POSITIVE_RATE, write

    settings = dataclasses.replace(job.settings, calibration=None)
    found = measure(resolve(settings.model, job.tracking), settings)
    write(found, file)
    values = {
        "file": str(file),
        "images": found.images,
        "num_images": found.num_images,
        "class_changed": len(found.changed),
        "false_positive_rate": FALSE_POSITIVE_RATE,
    }
    text = (
        f"{file}: {found.num_images} clean images of {found.images}, of which {len(found.changed)} change class;"
        f" {FALSE_POSITIVE_RATE:.0%} of clean images will be suspected"
    )
    job.print_result(values, text)
    return 0
