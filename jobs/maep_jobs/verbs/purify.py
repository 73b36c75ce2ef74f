"""`maep purify`: purify image files and folders, by an endpoint or in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maep_jobs.arguments import JobParser, local_folder
from maep_jobs.purify.config import CHAMPION, PurifyConfig

_EXAMPLES = """  maep purify photo.jpg -o clean.png --model bundled:cifar10
  maep purify photos more/cat.png -o clean --server http://127.0.0.1:8000
  maep purify photos -o clean --model models:/purifier@champion --json"""


def parser() -> JobParser[PurifyConfig]:
    """The verb's options."""
    summary = "Purify images. If it is interrupted, re-run the same command to resume."
    made = JobParser("purify", PurifyConfig, summary, _EXAMPLES, output=False)
    made.add_argument("inputs", nargs="+", type=Path, metavar="IN", help="an image, or a folder of images")
    made.add_argument("-o", "--output", type=local_folder, required=True, metavar="OUT", help="a folder, or a .png")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb; exit status 1 where a file failed."""
    job = parser().parse_job(argv)
    from maep_jobs.purify import image_files

    found = image_files.find(job.options.inputs, job.options.output)
    if job.options.dry_run:
        by = job.settings.server or job.settings.model or CHAMPION
        others = f"; skip {found.num_others:,} other files" if found.num_others else ""
        return job.print_plan(f"purify {len(found.pairs):,} images to {job.options.output} with {by}{others}")
    from maep_jobs.purify.run import purify

    outcome, purifier = purify(job.settings, job.tracking, found.pairs)
    counts = {"purified": outcome.purified, "skipped": outcome.skipped, "failed": outcome.failed}
    values = counts | {"output": str(job.options.output), "purifier": purifier}
    job.print_result(values, f"{outcome}: {job.options.output}  (purifier {purifier[:12]})")
    return 1 if outcome.failed else 0
