"""Training batches: which images each step takes, and the loaders that bring them, augmented, to the device."""
