"""The terminal: help, progress, standard output, commands to copy."""
