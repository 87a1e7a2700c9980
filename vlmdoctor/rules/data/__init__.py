"""Rules on the tokens and samples that the model gets."""
