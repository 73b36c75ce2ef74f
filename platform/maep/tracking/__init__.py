"""MLflow runs, the registry of purifiers, and `resolve`: any purifier URI to a verified local folder."""
