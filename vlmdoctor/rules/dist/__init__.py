"""Rules on training with several processes."""
