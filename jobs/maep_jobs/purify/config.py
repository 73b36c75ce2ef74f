"""The configuration of `maep purify`."""

from __future__ import annotations

from dataclasses import dataclass

from maep import config
from maep.tracking.purifier_ref import PurifierRef

CHAMPION = "models:/purifier@champion"


@dataclass(frozen=True)
class PurifyConfig:
    """The purifier, in this process or behind an endpoint, and limits."""

    model: str | None = config.key(
        None, f"Purifier to load in this process, any purifier URI; null: {CHAMPION}.", decides=True
    )
    server: str | None = config.key(
        None, "URL of an endpoint to use instead; its token is read from $MAEP_SERVE_TOKEN.", decides=True
    )
    ca_file: str | None = config.key(
        None, "File of certificates to trust for https; null: the system's.", decides=False
    )
    in_flight: int = config.key(
        32, "Images in progress at a time; at least max_batch_size of the endpoint, to fill its batches.", decides=False
    )
    max_pixels: int = config.key(4096 * 4096, "Maximum pixels of an image, in this process.", decides=False)
    tile_size: int | None = config.key(
        None, "Side in pixels of the tiles of larger images, in this process; null: as `maep serve`.", decides=True
    )
    max_batch_size: int = config.key(32, "Maximum images in one forward pass, in this process.", decides=False)

    def __post_init__(self) -> None:
        """Raises ValueError naming the key that cannot be used."""
        if self.model is not None and self.server is not None:
            raise ValueError("server: the endpoint has its own purifier: give either --server or --model")
        if self.model is not None:
            PurifierRef.parse(self.model)
        for name in ("in_flight", "max_pixels", "max_batch_size", "tile_size"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name}: {value} must be above 0")
