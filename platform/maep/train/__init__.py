"""Training: objectives, one plain PyTorch loop, and the same loop on Ray Train."""
