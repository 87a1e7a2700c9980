"""A checkpoint beside the model, and a run that is resumed."""
