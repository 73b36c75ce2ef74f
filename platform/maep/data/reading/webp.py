"""The header of a WebP file (RFC 9649), read before Pillow opens the file, which allocates two frames."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_LOSSY_START = b"\x9d\x01\x2a"
_LOSSLESS_START = 0x2F
_ANIMATED = 0x02


@dataclass(frozen=True)
class WebPHeader:
    """Size of the canvas in pixels, and whether the file is animated."""

    width: int
    height: int
    animated: bool


def is_webp(data: bytes) -> bool:
    """Whether `data` starts like a WebP file."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_header(data: bytes) -> WebPHeader:
    """The header in the first chunk. Raises ValueError where it is damaged."""
    kind, body = data[12:16], data[20:50]
    if kind == b"VP8 " and body[3:6] == _LOSSY_START and len(body) >= 10:
        width, height = struct.unpack_from("<HH", body, 6)
        return WebPHeader(width & 0x3FFF, height & 0x3FFF, False)  # the upper two bits are a display scale
    if kind == b"VP8L" and len(body) >= 5 and body[0] == _LOSSLESS_START:
        bits = int.from_bytes(body[1:5], "little")
        return WebPHeader((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, False)
    if kind == b"VP8X" and len(body) >= 10:
        width, height = (int.from_bytes(body[start : start + 3], "little") + 1 for start in (4, 7))
        return WebPHeader(width, height, bool(body[0] & _ANIMATED))
    raise ValueError("unknown first chunk")
