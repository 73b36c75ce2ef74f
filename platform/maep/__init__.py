"""maep: masked-autoencoder purifiers, from raw images to a live endpoint.

The public interface. Each name is imported on first use, so `import maep` costs nothing:

    load_purifier(uri)              the purifier that a URI names, an `nn.Module`: images in [0, 1] to images in [0, 1]
    load_classifier(spec)           a protected classifier: images in [0, 1] to logits
    defend(classifier, purifier)    both as one module, differentiable end to end
    attack(model, images, labels)   attacked images within a budget
    evaluate(purifiers, output)     accuracies by threat model
    compare(ours, theirs)           paired tests between two purifiers of finished evaluations

To add your own attacks, baselines, data sets, purifier families, loss terms or search metrics, see `maep.registry`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maep.api import compare, evaluate, load_classifier
    from maep.attacks.run import attack
    from maep.models.purifier import defend
    from maep.tracking.resolve import load_purifier

__all__ = ["__version__", "attack", "compare", "defend", "evaluate", "load_classifier", "load_purifier"]
__version__ = "0.1.0"


_HOMES = {"attack": "attacks.run", "defend": "models.purifier", "load_purifier": "tracking.resolve"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'maep' has no attribute {name!r}")
    return getattr(importlib.import_module(f"maep.{_HOMES.get(name, 'api')}"), name)
