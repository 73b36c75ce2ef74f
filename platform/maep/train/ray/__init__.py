"""The training loop on Ray Train."""
