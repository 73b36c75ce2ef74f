"""`maep serve`: start the endpoint and keep it until Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from maep.tracking.resolve import resolve
from maep_jobs.arguments import Job, parse, parser, plan_text
from maep_serve.config import ServeConfig

_EXAMPLES = """  maep serve --model bundled:cifar10 --classifier cifar10_resnet20
  maep serve --model models:/purifier@champion --port 8080 --num_replicas 2
  curl --data-binary @image.png -H 'content-type: image/png' http://127.0.0.1:8000/v1/purify -o clean.png"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    made = parser("serve", "Serve a purifier over HTTP (loopback by default).", _EXAMPLES, output=False)
    job = parse(made, ServeConfig, argv, default="serve")
    if job.options.dry_run:
        settings = job.settings
        print(plan_text(job, [f"serves {settings.model} at http://{settings.host}:{settings.port}"]), end="")
        return 0
    from maep_serve.server import start

    server = start(pinned(job.settings, job))
    if job.options.json:
        print(json.dumps({"url": server.url, "purifier_sha256": server.purifier_sha256}), flush=True)
    else:
        print(f"{server.url}/  purifier {server.purifier_sha256[:12]}  (Ctrl-C stops it)", flush=True)
    server.wait()
    return 0


def pinned(settings: ServeConfig, job: Job[Any]) -> ServeConfig:
    """`settings` with its model resolved to a verified local folder, through this job's registry."""
    return dataclasses.replace(settings, model=str(resolve(settings.model, job.tracking).folder))
