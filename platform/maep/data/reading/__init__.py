"""Encoded images as they lie, in Parquet files or class folders, and their decoding."""
