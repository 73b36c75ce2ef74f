"""What a person sees: progress, standard output, command lines."""
