"""maep: masked-autoencoder purifiers, from raw images to a live endpoint.

`maep.load_purifier(uri)` and `maep.defend(classifier, purifier)` are the public interface for other tools.
They are imported on first use, so that `import maep` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maep.models.purifier import defend
    from maep.tracking.resolve import load_purifier

__all__ = ["__version__", "defend", "load_purifier"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load_purifier":
        from maep.tracking.resolve import load_purifier

        return load_purifier
    if name == "defend":
        from maep.models.purifier import defend

        return defend
    raise AttributeError(f"module 'maep' has no attribute {name!r}")
