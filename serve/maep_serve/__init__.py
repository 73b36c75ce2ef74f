"""The endpoint: one URL before any classifier, on Ray Serve."""
