"""What the loss sees, and how it is put together."""
