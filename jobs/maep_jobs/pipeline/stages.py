"""The stages of `maep run`. Each has a folder named by a digest of everything that decides its result.

So a finished stage is reused, a changed one gets another folder, and nothing is overwritten. Training stages run as
separate `maep` processes, up to `parallel` at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from maep import artifact, storage
from maep.artifact import Artifact
from maep.errors import ConfigError, JobFailed, UnavailableError
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.report.table import headline, markdown, notes, terminal
from maep.evaluate.results.summary import RESULT, Result
from maep.tracking.client import TrackingConfig, absolute, connect
from maep.tracking.runs import ui_command
from maep.train.config import ClassifierConfig, FinetuneConfig, PretrainConfig
from maep_jobs.arguments import command_line, with_tracking
from maep_jobs.evaluation import run_evaluation
from maep_jobs.pipeline import identity
from maep_jobs.pipeline.config import PipelineConfig
from maep_jobs.pipeline.endpoint import check_endpoint
from maep_jobs.pipeline.gate import send_through_gate
from maep_jobs.terminal.parent_death import ENDS_WITH
from maep_jobs.terminal.progress import wide
from maep_serve.config import ServeConfig
from maep_serve.http.tokens import endpoint_tokens
from maep_serve.ray.server import check_port

PICTURE = "purified.png"


@dataclass(frozen=True)
class Stage:
    """A training run: `verb` with `settings`, into `folder`, after the stages named in `after`."""

    name: str
    verb: tuple[str, ...]
    settings: ClassifierConfig | PretrainConfig | FinetuneConfig
    folder: Path
    after: tuple[str, ...] = ()

    def is_done(self) -> bool:
        """Whether its artifact is complete."""
        return artifact.is_valid(self.folder / "model")


def stages(settings: PipelineConfig, output: Path) -> list[Stage]:
    """The training stages, each after the stages it needs."""
    made: list[Stage] = []
    upstream: dict[str, str] = {}  # name of a classifier -> name of the folder that holds it
    for each in settings.classifiers:
        folder = output / f"classifier-{each.name}-{identity.of_training(each, {})}"
        made.append(Stage(f"classifier-{each.name}", ("classifier", "train", each.data.name), each, folder))
        upstream[each.name] = folder.name
    trained = tuple(stage.name for stage in made)
    pretrain = output / f"pretrain-{identity.of_training(settings.pretrain, {})}"
    made.append(Stage("pretrain", ("pretrain",), settings.pretrain, pretrain))
    for name, phase, start in (("finetune", settings.finetune, pretrain), ("conv", settings.conv, None)):
        if phase is None:
            continue
        needs = upstream | ({"init": start.name} if start else {})
        placed = dataclasses.replace(
            phase,
            init=str(start / "model") if start else phase.init,
            classifiers=tuple(str(output / upstream[c] / "model") if c in upstream else c for c in phase.classifiers),
        )
        folder = output / f"{name}-{identity.of_training(phase, needs)}"
        made.append(Stage(name, ("finetune",), placed, folder, (*trained, *(["pretrain"] if start else []))))
    return made


def run_pipeline(
    settings: PipelineConfig,
    tracking: TrackingConfig,
    output: Path,
    keep: bool = False,
    force: bool = False,
    table: Console | None = None,
) -> dict[str, Any]:
    """Runs the stages that are not done and returns the outcome: version, reasons, result, endpoint, picture.

    The gate decides first, on `dev` images. Only a purifier that passes it is evaluated on `test`, reported and served,
    so `test` images never guide development. The table goes to `table` (default: standard output), everything else to
    standard error. A port in use or an unreachable tracking store is refused before the first stage.
    Raises what the stages raise, and JobFailed, naming the stage, where a training process failed.
    """
    began, tracking = time.monotonic(), absolute(tracking)
    with storage.lock_folder(output):
        _check_ends(settings.serve, tracking)
        training = stages(settings, output.absolute())
        _train(training, tracking, settings.parallel)
        folders = {stage.name: stage.folder / "model" for stage in training}
        located = {each.name: folders[f"classifier-{each.name}"] for each in settings.classifiers}
        purifier = artifact.read(folders["finetune"])
        compared = {"maep": purifier, **({"conv": artifact.read(folders["conv"])} if settings.conv else {})}

        _say("gate: measure the purifier on dev images")
        on_dev = _evaluate_on(settings.evaluate, settings.gate_classifiers or settings.evaluate.classifiers, located)
        verdict = send_through_gate(purifier, on_dev, settings.gate, tracking, output / "gate", force)
        for line in [f"version {verdict.version} is {'' if verdict.champion else 'not '}champion", *verdict.reasons]:
            _say(f"gate: {line}")

        base = _evaluate_on(settings.evaluate, settings.evaluate.classifiers, located)
        result, endpoint = None, None
        if verdict.champion:
            result = _report(base, compared, output, table or wide(Console()))
            _say("serve: start the endpoint and check one response")
            serve = dataclasses.replace(settings.serve, classifier=_protected(settings.serve.classifier, located))
            endpoint = check_endpoint(serve, tracking, base, keep)
            served = endpoint["sha256"][:12]
            _say(f"serve: the response is byte for byte the champion's offline output (sha256 {served})")
        else:
            _say("evaluate, serve: skipped, because the gate refused the purifier")
    _say(f"runs: {ui_command(tracking)}")
    _say(f"all stages: {(time.monotonic() - began) / 60:.1f} minutes")
    return {
        "version": verdict.version,
        "champion": verdict.champion,
        "reasons": verdict.reasons,
        "result": str(result.folder) if result else None,
        "endpoint": endpoint,
        "picture": str(output / PICTURE) if result else None,
    }


def _report(base: EvaluateConfig, compared: dict[str, Artifact], output: Path, table: Console) -> Result:
    """Evaluates, prints the table, and writes it as Markdown beside a strip of pictures."""
    from maep_jobs import report

    digest = identity.of_evaluation(base, [each.sha256 for each in compared.values()])
    folder = output / f"evaluate-{digest}"
    _say("evaluate: already done" if (folder / RESULT).exists() else "evaluate: measure on test images")
    result = run_evaluation(base, compared, folder)
    storage.write_bytes(output / "table.md", markdown(headline(result), notes(result)).encode())
    table.print(terminal(result))
    _say(f"pictures: {report.write_strip(base, compared['maep'], output / PICTURE)}")
    _say(f"report: {report.write(result, base, compared, command_line(sys.argv[1:]))}")
    return result


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_ends(serve: ServeConfig, tracking: TrackingConfig) -> None:
    """Checks what would otherwise fail the last stages hours later, and creates the default tracking store."""
    if not tracking.enabled:
        raise ConfigError(
            "tracking.enabled: the pipeline promotes in the MLflow registry, which needs tracking: leave it true"
        )
    endpoint_tokens(serve)
    try:
        check_port(serve)
    except UnavailableError:
        raise UnavailableError(f"port {serve.port} on {serve.host} is in use: choose another, --serve.port N") from None
    connect(tracking)


def _train(training: Sequence[Stage], tracking: TrackingConfig, parallel: int) -> None:
    """Runs the stages that are not done, up to `parallel` at a time, each after the stages it needs."""
    done = {stage.name for stage in training if stage.is_done()}
    for name in sorted(done):
        _say(f"{name}: already done")
    waiting = [stage for stage in training if stage.name not in done]
    with contextlib.ExitStack() as stack:
        running: dict[str, subprocess.Popen[bytes]] = {}
        while waiting or running:
            for stage in [stage for stage in waiting if done.issuperset(stage.after)][: parallel - len(running)]:
                waiting.remove(stage)
                running[stage.name] = stack.enter_context(_started(stage, tracking, parallel))
            for name, process in list(running.items()):
                status = process.poll()
                if status == 2:
                    raise ConfigError(f"stage {name}: see the error above")
                if status:
                    raise JobFailed(f"stage {name} failed with exit status {status}: see its output above")
                if status == 0:
                    del running[name]
                    done.add(name)
            time.sleep(0.2)


@contextlib.contextmanager
def _started(stage: Stage, tracking: TrackingConfig, parallel: int) -> Any:
    """The stage's process, with its share of the cores; terminated if the pipeline ends first."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    file = stage.folder / "stage.yaml"
    storage.write_bytes(file, with_tracking(stage.settings, tracking).encode(), mode=0o600)
    line = [*stage.verb, "--config", str(file), "--output", str(stage.folder)]
    _say(f"{stage.name}: maep {shlex.join(line)}")
    threads = str(max(1, (os.cpu_count() or 1) // parallel))
    process = subprocess.Popen(
        [sys.executable, "-m", "maep_jobs.cli", *line],
        env={
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "PASSIVE",
            ENDS_WITH: str(os.getpid()),
            "TERM": "dumb",  # plain lines: several progress bars would overwrite each other
        },
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _evaluate_on(base: EvaluateConfig, classifiers: Sequence[str], located: dict[str, Path]) -> EvaluateConfig:
    return dataclasses.replace(base, classifiers=tuple(str(located.get(spec, spec)) for spec in classifiers))


def _protected(spec: str | None, located: dict[str, Path]) -> str | None:
    return str(located[spec]) if spec in located else spec
