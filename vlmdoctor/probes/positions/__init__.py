"""Positions and rotary embeddings."""
