"""A training step without numbers."""
