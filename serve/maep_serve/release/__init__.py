"""Which version is served: followed by alias, checked against golden outputs."""
