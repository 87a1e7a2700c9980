"""Rules on images: whether the model uses them, and whether they are the right ones."""
