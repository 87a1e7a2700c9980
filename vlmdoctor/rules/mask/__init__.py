"""Rules on what may see what: the causal mask, padding, other samples."""
