"""`maep VERB ...`: finds the verb's module, runs it, and turns mistakes into one line and exit status 2."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from types import FrameType

from maep.errors import Stopped, UserError, nearest
from maep_jobs.failure import JobFailed
from maep_jobs.terminal.parent_death import end_with_parent
from maep_jobs.terminal.standard_output import json_alone

VERBS = {
    "demo": "the whole path on scikit-learn's digits in minutes, with a picture",
    "run": "a pipeline: pretrain, finetune, gate, promote, evaluate, serve and check",
    "pretrain": "train a masked autoencoder",
    "finetune": "make it a purifier, on images attacked on the fly",
    "tune": "search for the best purifier for a budget",
    "evaluate": "measure purifiers under each threat model",
    "promote": "send a purifier through the gate to the alias champion",
    "rollback": "give the alias champion back to the version before",
    "serve": "start the endpoint",
    "purify": "image files and folders, by the endpoint or in this process",
    "submit": "run a verb on a Ray cluster",
    "data": "fetch and inspect data sets",
    "classifier": "train a classifier to protect",
    "convert": "exchange autoencoders with Hugging Face's ViTMAE",
}

_HELP = """maep trains, searches, evaluates and serves masked-autoencoder purifiers.

usage: maep VERB [--config NAME|FILE] [--output DIR] [--dry-run] [--json] [--section.key VALUE ...]

{verbs}

maep VERB --help tells more, with examples. Exit status: 0 done, 1 failed, 2 a mistake in what was given.
  maep demo
  maep run cifar10/pipeline --output outputs/cifar10
  maep serve --model bundled:cifar10 --classifier cifar10_resnet20
"""

# What the machine refuses and its user can mend: no room, no right, no such place.
_MENDABLE = {
    errno.ENOSPC: "free some space or choose another --output",
    errno.EDQUOT: "free some space or choose another --output",
    errno.EACCES: "choose a place you may write to",
    errno.EPERM: "choose a place you may write to",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.EEXIST: "check the path",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP.format(verbs="\n".join(f"  {verb:<11} {text}" for verb, text in VERBS.items())))
        return 0
    verb, *rest = words
    if verb == "--version":
        from maep import __version__

        print(f"maep {__version__}")
        return 0
    if verb not in VERBS:
        print(f"maep: unknown verb {verb!r}: {nearest(verb, VERBS)}", file=sys.stderr)
        return 2
    _quiet_environment()
    if argv is None:
        signal.signal(signal.SIGTERM, _end)
        end_with_parent()
    # a plan is for people, whatever form they asked the result in
    output = json_alone() if "--json" in rest and "--dry-run" not in rest else nullcontext()
    try:
        with output:
            status: int = importlib.import_module(f"maep_jobs.verbs.{verb}").main(rest)
    except UserError as error:
        print(f"maep {verb}: {error}", file=sys.stderr)
        return 2
    except (JobFailed, FloatingPointError) as error:
        print(f"maep {verb}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"maep {verb}: {where}{error.strerror}: {_MENDABLE[error.errno]}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"maep {verb}: {stopped}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print(f"maep {verb}: stopped; what is finished is kept, and the same line goes on from there", file=sys.stderr)
        return 130
    return status


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds as Ctrl-C does, so that child processes and endpoints end with this one."""
    del frame
    raise SystemExit(128 + number)


def _quiet_environment() -> None:
    """No telemetry, and threads that wait without burning the cores that other workers need."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_WAIT_POLICY": "PASSIVE",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
