"""`PurifierRef`: a purifier URI, parsed once. `maep.tracking.resolve` turns one into a verified artifact."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from maep.errors import ConfigError
from maep.storage import is_remote

if TYPE_CHECKING:
    from maep.artifact import Artifact

Scheme = Literal["folder", "bundled", "models", "runs", "s3"]
FORMS = "a folder, bundled:NAME, runs:/ID, models:/NAME@ALIAS, models:/NAME/VERSION or s3://BUCKET/KEY"
_MODEL = re.compile(r"([^/@']+)(?:/(\d+)|@([\w.-]+))")


@dataclass(frozen=True)
class PurifierRef:
    """One purifier, as a user names it.

    uri: what was parsed, for messages.
    name: a folder's path, the name of a bundled purifier or registered model, a run's id, or an s3:// address.
    version, alias: of a registered model; exactly one of them is set.
    path: a folder among a run's artifacts; empty for the checkpoint that the run recorded last.
    sha256: of the manifest, once resolved; resolving again accepts no other artifact.
    """

    uri: str
    scheme: Scheme
    name: str
    version: int | None = None
    alias: str | None = None
    path: str = ""
    sha256: str | None = None

    @classmethod
    def parse(cls, uri: str) -> PurifierRef:
        """Parses `uri`, without checking whether it exists. Raises ConfigError for an unknown form."""
        from maep.tracking.client import hide_secrets

        scheme, _, rest = uri.partition(":")
        if scheme == "bundled":
            return cls(uri, "bundled", rest)
        if scheme == "models":
            found = _MODEL.fullmatch(rest.lstrip("/"))
            if found is None:
                raise ConfigError(f"{uri!r} has no version: write models:/NAME@champion or models:/NAME/3")
            name, version, alias = found.groups()
            return cls(uri, "models", name, int(version) if version else None, alias)
        if scheme == "runs":
            run_id, _, path = rest.strip("/").partition("/")
            return cls(uri, "runs", run_id, path=path)
        if is_remote(uri):
            return cls(uri, "s3", uri)
        if scheme == "file":
            return cls(uri, "folder", unquote(uri.removeprefix("file://").removeprefix("file:")))
        if re.match(r"[a-z][a-z0-9+.-]+:", uri):
            raise ConfigError(f"{hide_secrets(uri)!r} is not a purifier URI: write {FORMS}")
        return cls(uri, "folder", uri)

    def __str__(self) -> str:
        return self.uri

    def at_version(self, version: int) -> PurifierRef:
        """Version number `version` of the same registered model."""
        assert self.scheme == "models"
        return replace(self, uri=f"models:/{self.name}/{version}", version=version, alias=None)

    def pinned(self, artifact: Artifact) -> PurifierRef:
        """The same reference pinned to `artifact`, which it resolved to, and independent of the working directory."""
        if self.scheme == "folder":
            folder = str(Path(self.name).absolute())
            return replace(self, uri=folder, name=folder, sha256=artifact.sha256)
        return replace(self, sha256=artifact.sha256)
