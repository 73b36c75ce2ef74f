"""`maep classifier train`: train a classifier to protect."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maep.errors import ConfigError, UserError, nearest
from maep.train.config import ClassifierConfig
from maep_jobs.arguments import JobParser

_DATA = ("digits", "cifar10")
_EXAMPLES = """  maep classifier train digits --output outputs/digits/classifier
  maep classifier train cifar10 --depth 20 --loop.samples 1500000
  maep classifier train cifar10 --config cifar10/vgg --output outputs/cifar10/vgg
  maep evaluate --config cifar10/evaluate --classifiers outputs/cifar10/classifier/model"""


def parser() -> JobParser[ClassifierConfig]:
    """The verb's options."""
    summary = "Train a CIFAR ResNet or a thin VGG. The result is a folder to use as a classifier."
    made = JobParser("classifier", ClassifierConfig, summary, _EXAMPLES)
    made.add_argument("action", choices=["train"])
    made.add_argument("data", metavar="digits|cifar10")
    made.add_argument("--address", help="Ray cluster to run the workers on (default: this machine)")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    job = parser().parse_job(argv, _shipped)
    data = job.options.data
    if job.settings.data.name != data:
        raise ConfigError(f"data.name: the configuration has {job.settings.data.name}, the command {data}")
    from maep.train.classifier import dev_accuracy
    from maep_jobs.training import run_training

    result = run_training(job, "classifier")
    if result is not None:
        accuracy = dev_accuracy(result, job.settings.data)
        print(f"classifier {job.settings.name}: dev accuracy {accuracy:.2%}", file=sys.stderr)
    return 0


def _shipped(options: argparse.Namespace) -> str:
    if options.data not in _DATA:
        raise UserError(f"data set {options.data!r} is not known: {nearest(options.data, _DATA)}")
    return f"{options.data}/classifier"
