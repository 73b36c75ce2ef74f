"""Evaluation: clean, oblivious, BPDA, adaptive, transfer and black-box figures, checked and resumable.

measure     accuracy of one defended model under one attack; validation and search call it too
protocol/   presets (which attacks make which columns), tasks, workers, and the evaluation as a whole
trust/      the sanity battery, indicators of attack failure, checks across rows, flags
results/    rows per image, figures computed from them, comparison and gate
report/     tables, charts and the page
"""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The public function `maep.evaluate`, which this package would hide once one of its modules is imported."""
        from maep import api

        return api.evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
