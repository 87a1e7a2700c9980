"""Rules on the optimizer."""
