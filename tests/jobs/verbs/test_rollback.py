"""`maep rollback`: the alias goes back, again and again, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maep.artifact import Artifact
from maep.tracking.client import TrackingConfig
from maep.tracking.registry import aliases, by_version, register, set_alias

TRACKING = TrackingConfig()


def test_it_goes_back_and_further_back(maep: Any, store: Path, make_purifier: Callable[[int], Artifact]) -> None:
    assert maep("rollback").is_mistake("champion does not exist", "promote a purifier first")
    made = [make_purifier(seed) for seed in range(3)]
    for purifier in made:
        set_alias(TRACKING, "champion", register(TRACKING, purifier))
    assert aliases(TRACKING) == {"champion": 3}

    ran = maep("rollback")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"purifier version 2, {made[1].sha256[:12]}, is champion again (it was 3)\n"
    assert by_version(TRACKING, 3).tags["champion.rolled_back_to"] == "2"

    ran = maep("rollback", "--json")
    assert json.loads(ran.out) == {"left": 2, "champion": 1, "sha256": made[0].sha256}
    assert aliases(TRACKING) == {"champion": 1}
    assert maep("rollback").is_mistake("version 1 is the first champion of purifier", "--to N")

    assert maep("rollback", "--to", 3).status == 0
    assert aliases(TRACKING) == {"champion": 3}
    assert maep("rollback", "--to", 9).is_mistake("models:/purifier/9 does not exist: the last is 3")
    assert aliases(TRACKING) == {"champion": 3}
