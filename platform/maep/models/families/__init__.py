"""Purifier families, one file each: the configuration, which imports no torch, and the function that builds it."""
