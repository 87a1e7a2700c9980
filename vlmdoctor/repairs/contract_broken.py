"""Sets requires_grad for what is frozen against the contract, and measures whether it learns."""

from __future__ import annotations

from vlmdoctor.repairs.frozen_by_mistake import apply, measure

__all__ = ["COPIES", "DEPTH", "OF_PARAMETERS", "apply", "measure"]

DEPTH = "backward"
COPIES = True
OF_PARAMETERS = True
