"""Attacks on a classifier, or on a classifier behind a purifier, and the threat models they stand for."""
