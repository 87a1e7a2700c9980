"""Rules on whether images matter."""
