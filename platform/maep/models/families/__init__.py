"""One file a purifier family: its configuration, which imports no torch, and the function that builds it."""
