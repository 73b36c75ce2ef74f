"""`maep evaluate`: measure purifiers under each threat model beside the baselines, or compare two of them."""

from __future__ import annotations

from collections.abc import Sequence

from maep.errors import ConfigError, UserError
from maep.evaluate.config import EvaluateConfig
from maep.tracking.purifier_ref import PurifierRef
from maep_jobs.arguments import Job, JobParser, command_line
from maep_jobs.terminal.standard_output import print_json

_EXAMPLES = """  maep evaluate --config cifar10/evaluate --purifier maep=bundled:cifar10
  maep evaluate --purifier mine=outputs/purifier/model --purifier conv=outputs/conv/model --num_images 256
  maep evaluate --purifier champion=models:/purifier@champion --classifiers cifar10_resnet56
  maep evaluate --compare outputs/monday outputs/tuesday:conv --markdown"""


def parser() -> JobParser[EvaluateConfig]:
    """The verb's options."""
    summary = "Measure purifiers under each threat model. If it is interrupted, re-run the same command to resume."
    made = JobParser("evaluate", EvaluateConfig, summary, _EXAMPLES)
    made.add_argument(
        "--purifier",
        action="append",
        default=[],
        metavar="NAME=URI",
        help="purifier to evaluate; may be repeated (default: maep=bundled:cifar10)",
    )
    made.add_argument(
        "--compare",
        nargs=2,
        metavar="FOLDER[:PURIFIER]",
        help="instead compare two purifiers of finished evaluations, with a paired test",
    )
    made.add_argument("--markdown", action="store_true", help="print the tables as Markdown on standard output")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    job = parser().parse_job(argv, default="cifar10/evaluate")
    if job.options.json and job.options.markdown:
        raise ConfigError("--json and --markdown: choose one")
    if job.options.compare:
        from maep_jobs.evaluation import print_comparison

        return print_comparison(job.options)
    return _measure(job, command_line(["evaluate", *argv]))


def _measure(job: Job[EvaluateConfig], command: str) -> int:
    purifiers = dict(_named(text) for text in job.options.purifier or ["maep=bundled:cifar10"])
    from maep_jobs import evaluation

    if job.options.dry_run:
        return job.print_plan(*evaluation.plan(job.settings, purifiers, job.options.output))
    from maep.tracking.resolve import resolve
    from maep_jobs import report

    artifacts = {name: resolve(ref, job.tracking) for name, ref in purifiers.items()}
    result = evaluation.run_evaluation(job.settings, artifacts, job.options.output)
    page = report.write(result, job.settings, artifacts, command)
    if job.options.json:
        print_json(result.values)
    else:
        evaluation.print_tables(result, job.options.markdown)
    if not job.options.json and not job.options.markdown:
        print(f"result: {result.folder}")
        print(f"report: {page}")
    return 0


def _named(text: str) -> tuple[str, PurifierRef]:
    name, equals, uri = text.partition("=")
    if not equals or not name or not uri:
        raise UserError(f"--purifier {text!r}: write NAME=URI, such as mine=outputs/purifier/model")
    return name, PurifierRef.parse(uri)
