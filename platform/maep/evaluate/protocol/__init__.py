"""What an evaluation measures, and how its tasks are run."""
