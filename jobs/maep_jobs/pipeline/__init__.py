"""The stages of `maep run`."""
