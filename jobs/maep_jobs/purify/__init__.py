"""`maep purify`: image files through a purifier."""
