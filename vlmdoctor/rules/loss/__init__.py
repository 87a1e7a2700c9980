"""Rules on the loss."""
