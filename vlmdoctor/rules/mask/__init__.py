"""Rules on attention masks: the causal mask, padding, other samples."""
