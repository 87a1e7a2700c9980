"""The kinds of rotary embedding that transformers knows."""

from __future__ import annotations

# The types of `rope_type` that transformers computes.
KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "axial")
