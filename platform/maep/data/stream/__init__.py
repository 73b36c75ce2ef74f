"""Training batches: which images a step takes, and the loaders that bring them augmented to the device."""
