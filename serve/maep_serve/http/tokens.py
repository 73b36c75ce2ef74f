"""Bearer tokens: several at a time, so that they can rotate. Only digests are kept, and no token is ever logged."""

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
_EMPTY = hashlib.sha256().hexdigest()  # what `printf %s "$TOKEN" | sha256sum` prints if TOKEN is unset
_CHECK_INTERVAL_S = 1.0
_log = logging.getLogger(__name__)


class Tokens:
    """The valid tokens of an endpoint, by the hex sha256 of each.

    digests: of tokens that are valid for the life of the process.
    file: digests that may change, one per line: `SHA256` or `NAME SHA256`; `#` begins a comment. It is re-read within a
        second of a change. If it becomes unreadable, the last tokens stay valid.
    Raises ConfigError if the file is unreadable at the start, or if there is no token at all.
    """

    def __init__(self, digests: Sequence[str] = (), file: Path | None = None) -> None:
        self._fixed = tuple(digests)
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._checked = time.monotonic()
        self._from_file: tuple[str, ...] = ()
        if file is not None:
            self._stamp = _stamp(file)
            self._from_file = read(file)
        if not self._fixed + self._from_file:
            raise ConfigError(f"tokens_file: {file} holds no token, so every request would be refused: add one")

    @staticmethod
    def of(config: ServeConfig, digests: Sequence[str]) -> Tokens | None:
        """The tokens of `digests` and `config.tokens_file`; None if there are neither, so that none is required."""
        file = None if config.tokens_file is None else Path(config.tokens_file)
        return Tokens(digests, file) if digests or file is not None else None

    def __contains__(self, token: str) -> bool:
        """Whether `token` is valid, in time that does not depend on the token."""
        self._refresh()
        digest = digest_of(token)
        matches = [hmac.compare_digest(digest, known) for known in self._fixed + self._from_file]
        return any(matches)

    def allow(self, authorization: str) -> bool:
        """Whether the value of an Authorization header, `Bearer TOKEN`, holds a valid token."""
        scheme, _, rest = authorization.partition(" ")
        token = rest.strip()
        return token in self and token != "" and scheme.lower() == "bearer"

    def _refresh(self) -> None:
        if self._file is None or time.monotonic() - self._checked < _CHECK_INTERVAL_S:
            return
        self._checked = time.monotonic()
        try:
            stamp = _stamp(self._file)
            if stamp != self._stamp:
                self._from_file = read(self._file)
                self._stamp = stamp
        except ConfigError as error:
            _log.error("tokens not reloaded, the previous ones stay valid: %s", error)


def endpoint_tokens(config: ServeConfig) -> tuple[str, ...]:
    """Digests of the tokens in $MAEP_SERVE_TOKEN, one or several separated by commas.

    Raises ConfigError for an unusable `tokens_file`, and without any token if other machines can reach the endpoint.
    """
    digests = digests_in(os.environ.get(TOKEN_VARIABLE, ""))
    if config.tokens_file is not None:
        Tokens.of(config, digests)
    elif not digests and not is_loopback(config.host):
        raise ConfigError(
            f"host: {config.host} can be reached from other machines: set {TOKEN_VARIABLE} or tokens_file,"
            " or use --host 127.0.0.1"
        )
    return digests


def digest_of(token: str) -> str:
    """Hex sha256 of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def digests_in(text: str) -> tuple[str, ...]:
    """The digests of the tokens in `text`, separated by commas."""
    return tuple(digest_of(token) for word in text.split(",") if (token := word.strip()))


def read(file: Path) -> tuple[str, ...]:
    """The digests in a tokens file. Raises ConfigError, which never shows the content of a line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens_file: cannot read {file}: {getattr(error, 'strerror', 'not text')}") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 2 or not _DIGEST.fullmatch(words[-1]):
            raise ConfigError(
                f"tokens_file: line {number} of {file} is not `NAME SHA256`: make one with printf %s TOKEN | sha256sum"
            )
        if words[-1] == _EMPTY:
            raise ConfigError(f"tokens_file: line {number} of {file} is the digest of an empty token: was TOKEN unset?")
        found.append(words[-1])
    return tuple(found)


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise ConfigError(f"tokens_file: cannot read {file}: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size, status.st_ino
