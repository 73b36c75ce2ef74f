"""The terminal: progress, standard output, commands to copy."""
