"""`maep rollback`: each call moves the alias one version further back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maep.artifact import Artifact
from maep.tracking.client import TrackingConfig
from maep.tracking.registry import aliases, by_version, register, set_alias

TRACKING = TrackingConfig()


def test_repeated_rollbacks_go_further_back(maep: Any, store: Path, make_purifier: Callable[[int], Artifact]) -> None:
    assert maep("rollback").is_mistake("champion")
    made = [make_purifier(seed) for seed in range(3)]
    for purifier in made:
        set_alias(TRACKING, "champion", register(TRACKING, purifier))
    assert aliases(TRACKING) == {"champion": 3}

    ran = maep("rollback")
    assert (ran.status, ran.err) == (0, "")
    assert re.search(rf"\b2\b.*{made[1].sha256[:12]}.*\b3\b", ran.out)
    assert by_version(TRACKING, 3).tags["champion.rolled_back_to"] == "2"

    ran = maep("rollback", "--json")
    assert json.loads(ran.out) == {"left": 2, "champion": 1, "sha256": made[0].sha256}
    assert aliases(TRACKING) == {"champion": 1}
    assert maep("rollback").is_mistake("version 1", "--to")

    assert maep("rollback", "--to", 3).status == 0
    assert aliases(TRACKING) == {"champion": 3}
    assert maep("rollback", "--to", 9).is_mistake("models:/purifier/9", "3")
    assert aliases(TRACKING) == {"champion": 3}
