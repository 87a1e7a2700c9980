"""Trying a repair on a copy and measuring again: until then a cause is a guess."""
