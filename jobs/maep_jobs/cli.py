"""`maep VERB ...`: runs the verb's module, and turns user errors into one line and exit status 2."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from types import FrameType

from maep.cluster import prepare_environment
from maep.errors import JobFailed, Stopped, UserError, nearest
from maep_jobs.terminal.parent_death import end_with_parent
from maep_jobs.terminal.standard_output import json_alone

VERBS = {
    "demo": "run the whole pipeline on scikit-learn's digits in minutes, with a picture",
    "run": "run a pipeline: pretrain, finetune, gate, promote, evaluate, serve, check",
    "pretrain": "train a masked autoencoder",
    "finetune": "train a purifier on images attacked on the fly",
    "tune": "search for the best purifier within a budget",
    "evaluate": "measure purifiers under each threat model",
    "promote": "make a purifier champion if it passes the gate",
    "rollback": "make the previous version champion again",
    "serve": "start the endpoint",
    "purify": "purify image files and folders",
    "submit": "run a verb on a Ray cluster",
    "data": "fetch, inspect and pack data sets",
    "classifier": "train a classifier to protect",
    "convert": "convert autoencoders from and to Hugging Face's ViTMAE",
}

_HELP = """maep trains, searches, evaluates and serves masked-autoencoder purifiers.

usage: maep VERB [--config NAME|FILE] [--output DIR] [--dry-run] [--json] [--section.key VALUE ...]

{verbs}

maep VERB --help lists options, configuration keys and examples. Exit status: 0 done, 1 failed, 2 usage error.
  maep demo
  maep run cifar10/pipeline --output outputs/cifar10
  maep serve --model bundled:cifar10 --classifier cifar10_resnet20
"""

# Errors of the operating system that the user can fix.
_FIXABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space or choose another --output"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "check the path"),
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
    prepare_environment()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle OpenMP threads leave the cores to other workers
    if argv is None:
        signal.signal(signal.SIGTERM, _end)
        end_with_parent()
    # --dry-run always prints text
    output = json_alone() if "--json" in rest and "--dry-run" not in rest else nullcontext()
    try:
        with output:
            status: int = importlib.import_module(f"maep_jobs.verbs.{verb}").main(rest)
    except UserError as error:
        print(f"maep {verb}: {' '.join(str(error).splitlines())}", file=sys.stderr)  # also where a name has lines
        return 2
    except (JobFailed, FloatingPointError) as error:
        print(f"maep {verb}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _FIXABLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"maep {verb}: {where}{error.strerror}: {_FIXABLE[error.errno]}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"maep {verb}: {stopped}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print(f"maep {verb}: interrupted; finished work is kept: re-run the same command to resume", file=sys.stderr)
        return 130
    return status


def _end(number: int, frame: FrameType | None) -> None:
    """Exits on SIGTERM with cleanup, as on Ctrl-C, so that child processes and endpoints end too."""
    del frame
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
