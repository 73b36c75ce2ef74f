"""`maep classifier train`: train a classifier to protect, for those who have none."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from maep.errors import ConfigError, UserError, nearest
from maep.train.classifier import dev_accuracy
from maep.train.config import ClassifierConfig
from maep_jobs.arguments import parse, parser
from maep_jobs.training import run_training

_DATA = ("digits", "cifar10")
_EXAMPLES = """  maep classifier train digits --output outputs/digits/classifier
  maep classifier train cifar10 --depth 20 --loop.samples 1500000
  maep classifier train cifar10 --config cifar10/vgg --output outputs/cifar10/vgg
  maep evaluate --config cifar10/evaluate --classifiers outputs/cifar10/classifier/model"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    made = parser(
        "classifier", "Train a CIFAR ResNet or a thin VGG; the result is a folder usable as a classifier.", _EXAMPLES
    )
    made.add_argument("action", choices=["train"])
    made.add_argument("data", metavar="digits|cifar10")
    made.add_argument("--address", help="Ray cluster to run the workers on (default: this machine)")
    options, _ = made.parse_known_args(list(argv))
    if options.data not in _DATA:
        raise UserError(f"data set {options.data!r} is not known: {nearest(options.data, _DATA)}")
    job = parse(made, ClassifierConfig, argv, default=f"{options.data}/classifier")
    if job.settings.data.name != options.data:
        raise ConfigError(f"data.name: {job.settings.data.name} in the configuration, but {options.data} was asked for")
    result = run_training(job, "classifier")
    if result is not None:
        print(
            f"classifier {job.settings.name}: accuracy on dev {dev_accuracy(result, job.settings.data):.2%}",
            file=sys.stderr,
        )
    return 0
