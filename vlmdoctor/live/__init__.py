"""Showing a run while it happens: what is known, how it looks, and where it is drawn."""
