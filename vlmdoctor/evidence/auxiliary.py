"""Auxiliary losses that a model returns with its loss, and whether the loss contains them."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "backward"
PROBE = "vlmdoctor.probes.loss.auxiliary"


@dataclass(frozen=True, kw_only=True)
class Auxiliary:
    """The auxiliary losses in the model's output that have a graph.

    Attributes:
        values: (name, value) of each.
        left_out: Names of those on which the loss does not depend.
        shares: (name, how much of the loss it is: value times coefficient) of the others.
        loss: The loss.
        added_outside: Whether the loss is made by a loss_fn, and not by the model.
    """

    values: tuple[tuple[str, float], ...] = ()
    left_out: tuple[str, ...] = ()
    shares: tuple[tuple[str, float], ...] = ()
    loss: float = 0.0
    added_outside: bool = False
