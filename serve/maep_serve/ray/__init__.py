"""The Ray Serve deployment: application, start and stop, ingress, metrics."""
