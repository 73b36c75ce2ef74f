"""`maep submit VERB ...`: run a verb on a Ray cluster, through Ray's Jobs API."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from maep import config, storage
from maep.cluster import check_address, is_here, prepare_environment
from maep.errors import ConfigError, UnavailableError, nearest
from maep.tracking.client import TrackingConfig, absolute
from maep_jobs.arguments import Parser, print_result
from maep_jobs.config_files import default_output, find
from maep_jobs.terminal.shell import program

_VERBS = ("run", "pretrain", "finetune", "tune", "evaluate", "classifier", "promote", "demo")
_REMOTE = ("pretrain", "finetune")
_EXAMPLES = """  maep submit pretrain --config cifar10/pretrain --address http://127.0.0.1:8265 --follow
  maep submit finetune --config my.yaml --output /shared/run --tracking.uri http://mlflow:5000 --address http://head:8265
  RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... maep submit evaluate --config cifar10/evaluate --json

All other arguments are passed to the verb. The configuration file is uploaded with the job; data and outputs are not:
name folders that all machines of the cluster can access. Checkpoints and purifiers go to --tracking.artifact_uri."""


def parser() -> Parser:
    """The verb's options."""
    made = Parser("submit", "Run a verb as a job of a Ray cluster on which maep is installed.", _EXAMPLES)
    made.add_argument("verb", metavar="VERB", help=", ".join(_VERBS))
    made.add_argument("--address", default="http://127.0.0.1:8265", help="the cluster's dashboard, http://HOST:8265")
    made.add_argument("--follow", action="store_true", help="print the job's log until it ends")
    made.add_argument("--config", metavar="NAME|FILE", help="the verb's configuration")
    made.add_argument("--output", metavar="DIR", help="the verb's output, as a path on the cluster")
    made.add_argument("--dry-run", action="store_true", help="print the job; submit nothing")
    made.add_json()
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb: 0 submitted (with --follow: succeeded), 1 the job failed, 2 a user error, here or in the job."""
    options, words = parser().parse_known_args(list(argv))
    if options.verb not in _VERBS:
        raise ConfigError(f"verb {options.verb!r} cannot be submitted: {nearest(options.verb, _VERBS)}")
    with tempfile.TemporaryDirectory() as folder:
        job = _job(options, words, Path(folder))
        if options.dry_run:
            print(yaml.safe_dump(job, sort_keys=False), end="")
            return 0
        return _submit(job, options)


def _job(options: argparse.Namespace, words: list[str], folder: Path) -> dict[str, Any]:
    """The job as Ray takes it; its working folder holds the configuration."""
    here = is_here(options.address)
    line = [sys.executable if here else "python", "-m", "maep_jobs.cli", options.verb]
    source, values = options.config, {}
    if options.verb == "run" and source is None and words and not words[0].startswith("--"):
        source, *words = words  # the pipeline is the verb's first argument
    if source:
        values = config.read_yaml(find(source))
        storage.write_bytes(folder / "config.yaml", find(source).read_bytes())
        line += ["config.yaml"] if options.verb == "run" else ["--config", "config.yaml"]
    line += words
    output = str(options.output or default_output(source or options.verb))
    if storage.is_remote(output) and options.verb not in _REMOTE:
        raise ConfigError(
            f"--output {output}: name a folder that the cluster can access; only {' and '.join(_REMOTE)} write to s3://"
        )
    line += ["--output", output if storage.is_remote(output) else str(Path(output).absolute())]
    if "tracking" not in values and not any(word.startswith("--tracking.") for word in words):
        if not here:  # the default store would be in the job's working folder, which is deleted after it
            raise ConfigError("--tracking.uri: name a tracking server that the cluster reaches, http://HOST:5000")
        line += ["--tracking.uri", str(absolute(TrackingConfig()).uri)]
    carried = ("MAEP_DATA", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL")  # addresses, never credentials
    variables = {name: os.environ[name] for name in carried if name in os.environ}
    return {
        "entrypoint": shlex.join(line),
        "runtime_env": {"working_dir": str(folder), "env_vars": variables},
        "metadata": {"maep_verb": options.verb},
    }


def _submit(job: dict[str, Any], options: argparse.Namespace) -> int:
    check_address(options.address, default_port=8265)
    prepare_environment()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(options.address)
        job_id = client.submit_job(**job)
    except AuthenticationError:
        raise UnavailableError(
            f"the Ray cluster at {options.address} refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from None
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnavailableError(f"the Ray cluster at {options.address} did not accept the job: {reason}") from None
    if options.follow:
        try:
            asyncio.run(_follow(client, job_id))
        except KeyboardInterrupt:
            stop = f"{program('ray')} job stop --address {options.address} {job_id}"
            print(f"job {job_id} is still running; to stop it: {stop}", file=sys.stderr)
            return 130
    status = str(client.get_job_status(job_id))
    logs = f"logs: {program('ray')} job logs --follow --address {options.address} {job_id}"
    values = {"job": job_id, "status": status, "address": options.address}
    print_result(options, values, f"job {job_id}: {status}", *([] if options.follow else [logs]))
    if not options.follow or status == "SUCCEEDED":
        return 0
    return 2 if client.get_job_info(job_id).driver_exit_code == 2 else 1


async def _follow(client: Any, job_id: str) -> None:
    async for lines in client.tail_job_logs(job_id):
        print(lines, end="", file=sys.stderr, flush=True)
