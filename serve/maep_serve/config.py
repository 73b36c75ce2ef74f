"""What the endpoint serves, where, and within which limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from maep.data.config import DataConfig

TOKEN_VARIABLE = "MAEP_SERVE_TOKEN"


@dataclass(frozen=True)
class ServeConfig:
    """One endpoint: a purifier, the classifier it protects (optional), an address, and limits.

    model: any purifier URI (`models:/purifier@champion`, `bundled:NAME`, `runs:/ID`, s3://, a folder).
    follow_s: so often it is looked whether an alias (`models:/NAME@ALIAS`) has moved; the replicas then take the new
        version, if it holds its golden outputs, while requests go on. 0 never looks.
    canary: a second purifier, served beside the first below /canary; a front such as nginx gives it its share.
    classifier: a specification for `maep.load_classifier`; without one there is no /v1/classify.
    calibration: a file that `maep serve --calibrate FILE` wrote for these very models; None takes what ships with maep.
    data: where the classifier's weights and the page's samples come from; None is the data set of the image size.
    max_batch_size, batch_wait_ms: images of equal size share a forward pass; a batch that is not full waits so long.
    min_replicas, max_replicas: with `max_replicas`, between so many as load asks for, and `num_replicas` is not used; 0
        ends the last replica when nobody calls for a while, and the next caller waits for a new one.
    target_requests: requests that a replica works on before another is started; None is `max_batch_size`.
    upscale_delay_s, downscale_delay_s: so long must the load ask for more, or fewer, before there are.
    num_threads: torch threads of one replica; None is the machine's cores shared among the replicas.
    max_queued_requests: requests that may wait in a replica beyond one full batch; the next one gets 429.
    max_pixels: of one image, read from its header before anything is decoded.
    max_pixels_in_flight: of all images a replica works on at once; the next one gets 429 before it is decoded. With the
        bodies not decoded yet (at most max_queued_requests + max_batch_size, of max_body_bytes) it bounds the replica's
        memory. Images of up to 256 x 256 do not count: the number of requests bounds those.
    request_timeout_s: for the body to arrive (408), and from then on for everything up to the answer (504).
    tile_size: longer sides are purified in overlapping tiles of this side; None is 8 x the purifier's training size.
    tokens_file: digests of bearer tokens (see maep_serve.http.tokens), besides those of $MAEP_SERVE_TOKEN.
    playground: attacks on the page; None is "on loopback addresses only".
    dashboard: Ray's own dashboard, where this process starts Ray.
    metrics_port: of the metrics, for Prometheus, where this process starts Ray; None lets Ray choose one. Ray answers
        there on every address and asks for no token.
    """

    model: str
    follow_s: float = 10.0
    canary: str | None = None
    classifier: str | None = None
    calibration: str | None = None
    data: DataConfig | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch_size: int = 32
    batch_wait_ms: float = 0.0
    num_replicas: int = 1
    min_replicas: int = 1
    max_replicas: int | None = None
    target_requests: float | None = None
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 60.0
    num_threads: int | None = None
    max_queued_requests: int = 128
    max_body_bytes: int = 8 * 2**20
    max_pixels: int = 4096 * 4096
    max_pixels_in_flight: int = 4 * 4096 * 4096
    tile_size: int | None = None
    request_timeout_s: float = 30.0
    tokens_file: str | None = None
    playground: bool | None = None
    dashboard: bool = False
    metrics_port: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the key that cannot be used."""
        if not 0 < self.port < 65536:
            raise ValueError(f"port: {self.port} is not between 1 and 65535")
        for name in ("max_batch_size", "num_replicas", "max_body_bytes", "max_pixels", "request_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")
        if self.max_pixels_in_flight < self.max_pixels:
            raise ValueError(
                f"max_pixels_in_flight: {self.max_pixels_in_flight} must be at least max_pixels, {self.max_pixels}"
            )
        for name in (
            "batch_wait_ms",
            "max_queued_requests",
            "follow_s",
            "min_replicas",
            "upscale_delay_s",
            "downscale_delay_s",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} must not be negative")
        if self.max_replicas is not None and self.max_replicas < max(self.min_replicas, 1):
            raise ValueError(f"max_replicas: {self.max_replicas} must be at least 1 and min_replicas")
        for name in ("num_threads", "tile_size", "target_requests", "metrics_port"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: {value} must be above 0, or null")
        if self.playground and not is_loopback(self.host):
            raise ValueError(f"playground: attacks are served on loopback only, and host is {self.host}")

    @property
    def most_replicas(self) -> int:
        """How many replicas there can be."""
        return self.num_replicas if self.max_replicas is None else self.max_replicas

    @property
    def most_in_flight(self) -> int:
        """How many requests one replica takes at once."""
        return self.max_queued_requests + self.max_batch_size

    @property
    def longest_s(self) -> float:
        """How long a replica may be busy with one request: its body has request_timeout_s, and the work again."""
        return 2 * self.request_timeout_s

    @property
    def playground_is_on(self) -> bool:
        """Whether POST /v1/attack exists (it also needs a classifier)."""
        return is_loopback(self.host) if self.playground is None else self.playground


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
