"""Extensions of maep, a file each; see pyproject.toml for their names."""
