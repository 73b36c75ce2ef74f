"""Attacks on a model from images to logits: a bare classifier, or a classifier behind a purifier."""
