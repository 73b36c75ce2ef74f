"""One file a data set: its layouts on disk, its splits and its fingerprint."""
