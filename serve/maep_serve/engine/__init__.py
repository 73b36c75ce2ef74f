"""The models of one replica: loading, batching, limits, suspicion scores."""
