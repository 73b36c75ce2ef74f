"""The training loop: plain PyTorch."""
