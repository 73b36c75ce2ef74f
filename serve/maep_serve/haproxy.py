"""HAProxy as Ray Serve configures it, less what it would show to other machines; it ends with whoever started it.

    python haproxy.py BINARY [HAPROXY'S OWN ARGUMENTS]

Ray starts this program where it wants HAProxy (maep_serve.ingress), so it is alone: the standard library, no maep.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2): killed, Ray would leave HAProxy behind, holding the port
_SECTIONS_FOR_US = re.compile(r"^((?:frontend prometheus|listen stats)\n +bind )\S*:(\d+)$", re.M)
_PUBLIC_SECTION = re.compile(r"^(frontend http_frontend\n +bind \S+\n)", re.M)
_ERROR_FILE = re.compile(r"^ +errorfile 503 (\S+)$", re.M)
_NO_REPLICA = (
    '{"type":"urn:maep:problem:not-ready","title":"The endpoint cannot be reached","status":503,'
    '"detail":"no replica answered; the request may be sent again","code":"not-ready"}'
)
_OURS = """\
    timeout http-request 10s
    http-request return status 404 content-type application/problem+json string '{body}' if {{ {hidden} }}
""".format(
    body='{"type":"urn:maep:problem:not-found","title":"There is nothing at this address","status":404,'
    '"detail":"below /-/ lies nothing of the endpoint","code":"not-found"}',
    hidden="path,url_dec -m beg -i /-/",
)


def private(configuration: str) -> str:
    """`configuration` with HAProxy's own figures on loopback only, and a public port that takes no more than it must.

    Ray binds the figures to every address. Its routes, below /-/, tell which applications there are. And it lets a
    caller take an hour for the lines before the body, whose own time is the endpoint's.
    """
    configuration = _SECTIONS_FOR_US.sub(r"\g<1>127.0.0.1:\2", configuration)
    if _OURS in configuration:
        return configuration
    return _PUBLIC_SECTION.sub(lambda found: found[1] + _OURS, configuration)


def unanswered() -> bytes:
    """What a caller is told where no replica can be reached, or one dies over the request: 503, as a problem document.

    Ray makes a plain 500 of it, which says that the request is at fault.
    """
    head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n"
    return f"{head}cache-control: no-cache\r\ncontent-length: {len(_NO_REPLICA)}\r\n\r\n{_NO_REPLICA}".encode("ascii")


def main() -> None:
    """Becomes HAProxy."""
    binary, *arguments = sys.argv[1:]
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if "-f" in arguments:
        file = Path(arguments[arguments.index("-f") + 1])
        configuration = file.read_text(encoding="utf-8")
        file.write_text(private(configuration), encoding="utf-8")
        for path in set(_ERROR_FILE.findall(configuration)):
            Path(path).write_bytes(unanswered())
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main()
