"""Changing one thing about a batch, and seeing what else changes."""
