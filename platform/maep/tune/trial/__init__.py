"""One trial: its configuration, its budget, its training and measurement."""
