"""Source files, read and never run."""
