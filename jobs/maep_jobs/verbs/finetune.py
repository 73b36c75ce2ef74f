"""`maep finetune`: make an autoencoder a purifier."""

from __future__ import annotations

from collections.abc import Sequence

from maep.train.config import FinetuneConfig
from maep_jobs.arguments import parse, parser
from maep_jobs.training import run_training

_EXAMPLES = """  maep finetune --config cifar10/finetune --init outputs/mae/model --output outputs/purifier
  maep finetune --config cifar10/conv --output outputs/conv
  maep finetune --config cifar10/finetune --attacks.mode adaptive --init outputs/mae/model
  maep finetune --config digits/lora --init outputs/digits/purifier/model --output outputs/adapted
  maep finetune --config cifar10/finetune --init outputs/mae/model --output outputs/again --resume runs:/RUN_ID"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    made = parser(
        "finetune",
        "Fine-tune a purifier on images attacked on the fly; the same line after a kill goes on.",
        _EXAMPLES,
        remote=True,
    )
    made.add_argument("--resume", metavar="URI", help="go on from this checkpoint (runs:/ID, s3://, a folder)")
    made.add_argument("--address", help="Ray cluster to run the workers on (default: this machine)")
    run_training(parse(made, FinetuneConfig, argv), "finetune")
    return 0
