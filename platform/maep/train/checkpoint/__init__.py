"""Checkpoints: written asynchronously, verified, mirrored, resumed from."""
