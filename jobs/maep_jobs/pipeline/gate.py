"""Registers a purifier and, if the gate passes it, moves the alias `champion` to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maep.artifact import Artifact
from maep.errors import ArtifactError, ConfigError
from maep.evaluate.config import EvaluateConfig, GateConfig
from maep.evaluate.results.gate import decide, evaluation
from maep.models.build import load_purifier_artifact
from maep.tracking.client import TrackingConfig
from maep.tracking.registry import by_alias, register, set_alias
from maep.tracking.resolve import resolve
from maep_jobs.evaluation import run_evaluation
from maep_jobs.pipeline import identity
from maep_serve.release import golden


@dataclass(frozen=True)
class Verdict:
    """The version of a candidate, whether it is champion now, and why."""

    version: int
    champion: bool
    reasons: list[str]


def send_through_gate(
    candidate: Artifact,
    base: EvaluateConfig,
    gate: GateConfig,
    tracking: TrackingConfig,
    output: Path,
    force: bool = False,
) -> Verdict:
    """Registers `candidate` with its golden outputs, evaluates it on `dev`, and moves the aliases.

    It gets the alias `candidate` at once, and `champion` if the gate passes it or by `force` (recorded on the version).
    """
    if candidate.kind != "purifier":
        raise ArtifactError(f"{candidate.folder} holds a {candidate.kind}: only a purifier can be promoted")
    champion = by_alias(tracking, "champion")
    holder = resolve(f"models:/{tracking.model}@champion", tracking) if champion is not None else None
    if holder is not None and _data_of(holder) != _data_of(candidate):
        raise ConfigError(
            f"tracking.model: the champion of {tracking.model!r} is for {_data_of(holder)}, this purifier for"
            f" {_data_of(candidate)}: use another registered model, --tracking.model purifier-{_data_of(candidate)}"
        )
    # Each replica must reproduce the golden outputs before it serves this version.
    outputs = golden.record(load_purifier_artifact(candidate))
    version = register(tracking, candidate, evaluation={} if outputs is None else {"golden": outputs})
    set_alias(tracking, "candidate", version)
    if champion is not None and champion.sha256 == candidate.sha256:
        return Verdict(version, True, [f"version {version} is already champion"])
    settings = evaluation(gate, base)
    candidates = {"candidate": candidate, **({"champion": holder} if holder is not None else {})}
    results = {
        role: run_evaluation(settings, {"purifier": each}, folder_of(output, role, each, settings))
        for role, each in candidates.items()
    }
    decision = decide(results["candidate"], results.get("champion"), gate)
    promoted = decision.passed or force
    record = {"passed": decision.passed, "forced": force and not decision.passed, **decision.figures}
    register(tracking, candidate, evaluation={"gate": record})
    if promoted:
        set_alias(tracking, "champion", version)
    forced = ["promoted by --force (recorded on the version)"] if record["forced"] else []
    return Verdict(version, promoted, decision.reasons + forced)


def _data_of(purifier: Artifact) -> str | None:
    """The data set that a purifier was trained on; None where its configuration does not say."""
    name: str | None = purifier.config.get("data", {}).get("name")
    return name


def folder_of(output: Path, role: str, purifier: Artifact, settings: EvaluateConfig) -> Path:
    """The folder of an evaluation of `purifier`; another one for each configuration of the gate."""
    return output / f"{role}-{purifier.sha256[:8]}-{identity.of_evaluation(settings, [])}"
