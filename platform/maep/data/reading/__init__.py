"""Encoded images in storage, one reader for each layout: Parquet files or a class folder, local or on S3."""
