"""Rows, results computed from them, paired comparison, and the gate."""
