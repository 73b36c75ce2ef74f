"""`maep pretrain`: train a masked autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

from maep.train.config import PretrainConfig
from maep_jobs.arguments import JobParser

_EXAMPLES = """  maep pretrain --config cifar10/pretrain --output outputs/mae
  maep pretrain --config digits/pretrain --mask_ratio 0.5 --dry-run
  maep pretrain --config cifar10/pretrain --workers.num_workers 2
  maep pretrain --config imagenet/slice --output s3://bucket/runs/mae
  maep pretrain --config cifar10/pretrain --init outputs/earlier/model --output outputs/longer
  maep pretrain --config cifar10/pretrain --output outputs/again --resume runs:/RUN_ID"""


def parser() -> JobParser[PretrainConfig]:
    """The verb's options."""
    summary = "Train a masked autoencoder. If it is interrupted, re-run the same command to resume."
    made = JobParser("pretrain", PretrainConfig, summary, _EXAMPLES, remote=True)
    made.add_argument("--resume", metavar="URI", help="resume from this checkpoint (runs:/ID, s3://, a folder)")
    made.add_argument("--address", help="Ray cluster to run the workers on (default: this machine)")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    job = parser().parse_job(argv)
    from maep_jobs.training import run_training

    run_training(job, "pretrain")
    return 0
