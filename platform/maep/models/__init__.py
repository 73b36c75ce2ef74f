"""The masked autoencoder, the purifiers built around it, a convolutional purifier, and the protected classifiers."""
