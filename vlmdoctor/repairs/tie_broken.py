"""Ties head and embedding again."""

from __future__ import annotations

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.finding import Finding
from vlmdoctor.proof.prove import Attempt
from vlmdoctor.proof.workbench import Workbench

DEPTH = "static"
COPIES = True
OF_PARAMETERS = False


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """Calls `tie_weights`, as the model itself does on loading."""
    tie = getattr(bench.model, "tie_weights", None)
    if tie is None:
        raise Unavailable("the model has no tie_weights()")
    tie()
    return Attempt("model.tie_weights() called")
