"""Rules on rotary position embeddings."""
