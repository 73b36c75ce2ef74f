"""`maep finetune`: train a purifier on attacked images."""

from __future__ import annotations

from collections.abc import Sequence

from maep.train.config import FinetuneConfig
from maep_jobs.arguments import JobParser

_EXAMPLES = """  maep finetune --config cifar10/finetune --init outputs/mae/model --output outputs/purifier
  maep finetune --config cifar10/conv --output outputs/conv
  maep finetune --config cifar10/finetune --attacks.mode adaptive --init outputs/mae/model
  maep finetune --config digits/lora --init outputs/digits/purifier/model --output outputs/adapted
  maep finetune --config cifar10/finetune --init outputs/mae/model --output outputs/again --resume runs:/RUN_ID"""


def parser() -> JobParser[FinetuneConfig]:
    """The verb's options."""
    summary = "Train a purifier on images attacked on the fly. If it is interrupted, re-run the same command to resume."
    made = JobParser("finetune", FinetuneConfig, summary, _EXAMPLES, remote=True)
    made.add_argument("--resume", metavar="URI", help="resume from this checkpoint (runs:/ID, s3://, a folder)")
    made.add_argument("--address", help="Ray cluster to run the workers on (default: this machine)")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    job = parser().parse_job(argv)
    from maep_jobs.training import run_training

    run_training(job, "finetune")
    return 0
