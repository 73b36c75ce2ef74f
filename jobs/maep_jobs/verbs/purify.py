"""`maep purify`: purify image files and folders, by an endpoint or in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maep import config
from maep_jobs.arguments import Job, JobParser, local_folder, plan_text
from maep_jobs.purify.config import CHAMPION, PurifyConfig
from maep_jobs.terminal.standard_output import print_json

if TYPE_CHECKING:
    from maep_jobs.purify.image_files import FoundImages

_EXAMPLES = """  maep purify photo.jpg -o clean.png --model bundled:cifar10
  maep purify photos more/cat.png -o clean --server http://127.0.0.1:8000
  maep purify photos -o clean --model models:/purifier@champion --json"""


def parser() -> JobParser[PurifyConfig]:
    """The verb's options."""
    summary = "Purify images. If it is interrupted, re-run the same command to resume."
    made = JobParser("purify", PurifyConfig, summary, _EXAMPLES, output=False)
    made.add_argument("inputs", nargs="+", type=Path, metavar="IN", help="an image, or a folder of images")
    made.add_argument("-o", "--output", type=local_folder, required=True, metavar="OUT", help="a folder, or a .png")
    made.add_argument("--server", metavar="URL", help="an endpoint; its token is read from MAEP_SERVE_TOKEN")
    made.add_argument("--model", metavar="URI", help=f"a purifier for this process (default: {CHAMPION})")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb; exit status 1 where a file failed."""
    job = _with_options(parser().parse_job(argv))
    from maep_jobs.purify import image_files

    found = image_files.find(job.options.inputs, job.options.output)
    if job.options.dry_run:
        print(plan_text(job, [_plan(job, found)]), end="")
        return 0
    from maep_jobs.purify.run import purify

    outcome, purifier = purify(job.settings, job.tracking, found.pairs)
    if job.options.json:
        counts = {"purified": outcome.purified, "skipped": outcome.skipped, "failed": outcome.failed}
        print_json(counts | {"output": str(job.options.output), "purifier": purifier})
    else:
        print(f"{outcome}: {job.options.output}  (purifier {purifier[:12]})")
    return 1 if outcome.failed else 0


def _with_options(job: Job[PurifyConfig]) -> Job[PurifyConfig]:
    """`job` with the two keys that are also options, so that they may come before IN."""
    given = {key: value for key in ("server", "model") if (value := getattr(job.options, key)) is not None}
    return dataclasses.replace(job, settings=config.build(PurifyConfig, config.to_dict(job.settings) | given))


def _plan(job: Job[PurifyConfig], found: FoundImages) -> str:
    by = job.settings.server or job.settings.model or CHAMPION
    others = f"; skip {found.num_others:,} other files" if found.num_others else ""
    return f"purify {len(found.pairs):,} images to {job.options.output} with {by}{others}"
