"""Bearer tokens: several at once, so that they can be rotated; only their digests are kept, and none is ever logged."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from maep.errors import ConfigError
from maep_serve.config import TOKEN_VARIABLE, ServeConfig, is_loopback

_DIGEST = re.compile(r"[0-9a-f]{64}")
_OF_NOTHING = hashlib.sha256().hexdigest()  # what `printf %s "$TOKEN" | sha256sum` says where TOKEN is not set
_LOOK_AGAIN_S = 1.0


class Tokens:
    """The tokens that open an endpoint, by the hex sha256 of each.

    digests: of tokens that stay for the life of the process.
    file: digests that may change, one a line: `SHA256` or `NAME SHA256`, `#` begins a comment. It is read again within
        a second of a change, so that a token is rotated by adding the new one, moving the callers, and taking the old
        one out. A file that cannot be read any more leaves the last tokens in force.
    Raises ConfigError for a file that cannot be read at first, or for no token at all.
    """

    def __init__(self, digests: Sequence[str] = (), file: Path | None = None) -> None:
        self._fixed = tuple(digests)
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._looked = time.monotonic()
        self._from_file: tuple[str, ...] = ()
        if file is not None:
            self._stamp = _stamp(file)
            self._from_file = read(file)
        if not self._fixed + self._from_file:
            raise ConfigError("tokens: there is none, so nobody could ask anything: name at least one")

    @staticmethod
    def of(config: ServeConfig, digests: Sequence[str]) -> Tokens | None:
        """Those of `digests` and `config.tokens_file`; None where there is neither, and so everybody may ask."""
        file = None if config.tokens_file is None else Path(config.tokens_file)
        return Tokens(digests, file) if digests or file is not None else None

    def __contains__(self, token: str) -> bool:
        """Whether `token` opens the endpoint; takes as long for every token."""
        self._look_again()
        digest = digest_of(token)
        matches = [hmac.compare_digest(digest, known) for known in self._fixed + self._from_file]
        return any(matches)

    def allow(self, authorization: str) -> bool:
        """Whether the value of an Authorization header, `Bearer TOKEN`, opens the endpoint."""
        scheme, _, rest = authorization.partition(" ")
        given = rest.strip()
        return given in self and given != "" and scheme.lower() == "bearer"

    def _look_again(self) -> None:
        if self._file is None or time.monotonic() - self._looked < _LOOK_AGAIN_S:
            return
        self._looked = time.monotonic()
        try:
            stamp = _stamp(self._file)
            if stamp != self._stamp:
                self._from_file = read(self._file)
                self._stamp = stamp
        except ConfigError as error:
            logging.getLogger(__name__).error("the tokens stay as they were: %s", error)


def endpoint_tokens(config: ServeConfig) -> tuple[str, ...]:
    """Digests of the tokens in $MAEP_SERVE_TOKEN, one or several with commas between them.

    Raises ConfigError where there is neither one nor a usable `tokens_file`, and other machines can reach the endpoint.
    """
    digests = digests_in(os.environ.get(TOKEN_VARIABLE, ""))
    if config.tokens_file is not None:
        Tokens.of(config, digests)
    elif not digests and not is_loopback(config.host):
        raise ConfigError(
            f"host: {config.host} can be reached from other machines: set {TOKEN_VARIABLE} or tokens_file,"
            " or --host 127.0.0.1"
        )
    return digests


def digest_of(token: str) -> str:
    """Hex sha256 of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def digests_in(text: str) -> tuple[str, ...]:
    """The digests of the tokens in `text`, separated by commas."""
    return tuple(digest_of(token) for word in text.split(",") if (token := word.strip()))


def read(file: Path) -> tuple[str, ...]:
    """The digests in a tokens file. Raises ConfigError, which never shows what a line holds."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens_file: {file} cannot be read: {getattr(error, 'strerror', 'not text')}") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 2 or not _DIGEST.fullmatch(words[-1]):
            raise ConfigError(f"tokens_file: line {number} of {file} is no `NAME SHA256`: printf %s TOKEN | sha256sum")
        if words[-1] == _OF_NOTHING:
            raise ConfigError(f"tokens_file: line {number} of {file} is the digest of an empty token: was TOKEN set?")
        found.append(words[-1])
    return tuple(found)


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise ConfigError(f"tokens_file: {file}: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size, status.st_ino
