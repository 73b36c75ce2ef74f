"""The search: space, suggestions, successive halving, and the execution of rounds."""
