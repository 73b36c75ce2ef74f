"""What trials are judged by."""
