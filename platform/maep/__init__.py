"""maep: masked-autoencoder purifiers, from raw images to a live endpoint.

The public interface for other tools, each name imported on first use, so that `import maep` costs nothing:

    load_purifier(uri)              any purifier URI to an `nn.Module`: images in [0, 1] to images in [0, 1]
    load_classifier(spec, root)     a protected classifier: images in [0, 1] to logits
    defend(classifier, purifier)    both as one module, differentiable end to end
    attack(model, images, ...)      attacked images within a budget
    evaluate(config, ...)           figures by threat model, from a configuration
    compare(ours, theirs, ...)      two purifiers of finished evaluations, with a paired test
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maep.attacks.run import attack
    from maep.evaluate.protocol.run import evaluate
    from maep.evaluate.results.compare import compare
    from maep.models.classifiers.load import load_classifier
    from maep.models.purifier import defend
    from maep.tracking.resolve import load_purifier

__all__ = ["__version__", "attack", "compare", "defend", "evaluate", "load_classifier", "load_purifier"]
__version__ = "0.1.0"

_HOMES = {
    "attack": "maep.attacks.run",
    "compare": "maep.evaluate.results.compare",
    "defend": "maep.models.purifier",
    "evaluate": "maep.evaluate.protocol.run",
    "load_classifier": "maep.models.classifiers.load",
    "load_purifier": "maep.tracking.resolve",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maep' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
