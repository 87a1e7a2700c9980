"""Rules on non-finite numbers and data types."""
