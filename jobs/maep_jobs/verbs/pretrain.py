"""`maep pretrain`: train a masked autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

from maep.train.config import PretrainConfig
from maep_jobs.arguments import parse, parser
from maep_jobs.training import run_training

_EXAMPLES = """  maep pretrain --config cifar10/pretrain --output outputs/mae
  maep pretrain --config digits/pretrain --mask_ratio 0.5 --dry-run
  maep pretrain --config cifar10/pretrain --workers.num_workers 2
  maep pretrain --config imagenet/slice --output s3://bucket/runs/mae
  maep pretrain --config cifar10/pretrain --init outputs/earlier/model --output outputs/longer
  maep pretrain --config cifar10/pretrain --output outputs/again --resume runs:/RUN_ID"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    made = parser("pretrain", "Train a masked autoencoder; the same line after a kill goes on.", _EXAMPLES, remote=True)
    made.add_argument("--resume", metavar="URI", help="go on from this checkpoint (runs:/ID, s3://, a folder)")
    made.add_argument("--address", help="Ray cluster to run the workers on (default: this machine)")
    run_training(parse(made, PretrainConfig, argv), "pretrain")
    return 0
