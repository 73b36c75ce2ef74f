"""ImageNet's archives packed into shuffled Parquet shards for streaming."""
