"""The configuration of the pipeline and of promotion. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from maep import config
from maep.evaluate.config import EvaluateConfig, GateConfig
from maep.train.config import ClassifierConfig, FinetuneConfig, PretrainConfig
from maep_serve.config import ServeConfig

CHAMPION = "models:/purifier@champion"


@dataclass(frozen=True)
class PipelineConfig:
    """The whole pipeline. The other sections refer to its classifiers by their `name`."""

    classifiers: tuple[ClassifierConfig, ...] = config.key((), "Classifiers to train first.", decides=True)
    pretrain: PretrainConfig = config.section(PretrainConfig)
    finetune: FinetuneConfig = config.section(lambda: FinetuneConfig(classifiers=("cifar10_resnet20",)))
    conv: FinetuneConfig | None = config.key(
        None, "Convolutional purifier to compare with, trained for as long; null: none.", decides=True
    )
    evaluate: EvaluateConfig = config.section(EvaluateConfig)
    gate: GateConfig = config.section(GateConfig)
    gate_classifiers: tuple[str, ...] = config.key(
        (), "Classifiers that the gate decides on; empty: those of `evaluate`.", decides=True
    )
    serve: ServeConfig = config.section(lambda: ServeConfig(model=CHAMPION))
    parallel: int = config.key(
        2, "Training stages that run at a time, each with its share of the cores.", decides=False
    )

    def __post_init__(self) -> None:
        """Raises ValueError for a pipeline that runs nothing."""
        if self.parallel < 1:
            raise ValueError(f"parallel: {self.parallel} must be at least 1")


@dataclass(frozen=True)
class PromoteConfig:
    """How a candidate is measured, and what it must pass."""

    evaluate: EvaluateConfig = config.section(EvaluateConfig)
    gate: GateConfig = config.section(GateConfig)
