"""The masked autoencoder, the purifiers made of it, their convolutional rival, and the classifiers they protect."""
