"""`maep tune`: planning, running, tracking and promoting a search."""
