"""One file a search metric: a function from a `Candidate` to a number, or to whether each image is right."""
