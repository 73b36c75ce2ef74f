"""The protected classifiers: loading, architectures, features."""
