"""Data sets, one file each: layouts on disk and splits."""
