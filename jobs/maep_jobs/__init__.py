"""What a user runs and submits: `maep VERB`, one short module a verb."""
