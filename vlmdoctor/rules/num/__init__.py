"""Rules on numbers that are not finite."""
