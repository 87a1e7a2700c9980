"""A few training steps on copies."""
