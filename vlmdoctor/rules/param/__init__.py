"""Rules on which parameters learn."""
