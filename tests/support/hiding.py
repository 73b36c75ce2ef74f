"""Run a Python program as if some packages were not installed."""

from __future__ import annotations

HIDE = """
import sys
class Hide:
    # A finder that does not know the hidden packages.
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
"""
"""Source to stand behind the assignment of HIDDEN, a set of import names."""
