"""Whether figures can be trusted: the sanity battery, indicators of attack failure, and flags."""
