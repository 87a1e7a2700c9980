"""Where a NaN or infinity came from, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vlmdoctor.evidence.steps import NonFinite
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.watching.finite import nonfinite_inputs, nonfinite_weights
from vlmdoctor.watching.guarded import of_a_signal, words
from vlmdoctor.watching.replay import Culprit, ReplayInput, Unkeepable, backward_again, forward_again

__all__ = ["communicates", "explain_gradient", "explain_loss", "nonfinite_weights"]

NAMED = 8  # parameters named at most
_COMMUNICATES = "a forward pass of this model waits for other processes, so that it can't be run again here"


def explain_loss(forward: ReplayInput, model: nn.Module, step: int) -> NonFinite:
    """Why the loss of `forward` is not finite."""
    if spoiled := nonfinite_weights(model):
        return NonFinite(step=step, where="weight", parameters=spoiled[:NAMED])
    if inputs := nonfinite_inputs(forward.args, forward.kwargs):
        return NonFinite(step=step, where="loss", inputs_finite=False, inputs=inputs)
    if communicates(model):
        return NonFinite(step=step, where="loss", inputs_finite=True, why_unknown=_COMMUNICATES)
    (culprit, still), why = _tried(forward_again, forward, what="forward", otherwise=(None, False))
    if why is not None:
        return NonFinite(step=step, where="loss", inputs_finite=True, why_unknown=why)
    if culprit is None:
        why = (
            "no module turned finite inputs into a non-finite output"
            if still
            else "the forward pass was finite when it was run again"
        )
        return NonFinite(step=step, where="loss", inputs_finite=True, why_unknown=why)
    return NonFinite(
        step=step,
        where="loss" if culprit.is_root and culprit.only_loss else "activation",
        module=culprit.name,
        module_class=culprit.module_class,
        inputs_finite=True,
        largest=culprit.largest,
        **_place(culprit),
    )


def explain_gradient(
    forward: ReplayInput | None, model: nn.Module, names: Sequence[str], step: int
) -> NonFinite:
    """Why gradients are not finite although the loss is; `names` are theirs, nearest the loss first."""
    parameters = tuple(names[:NAMED])
    why: str | None
    if forward is None or communicates(model):
        why = _COMMUNICATES if forward else "the batch was no longer at hand when the gradients were read"
        return NonFinite(step=step, where="gradient", parameters=parameters, why_unknown=why)
    inputs = nonfinite_inputs(forward.args, forward.kwargs)
    culprit: Culprit | None
    culprit, why = _tried(backward_again, forward, model, what="backward", otherwise=None)
    if culprit is None and why is None:
        why = "no module made a finite gradient non-finite in the last batch"
    return NonFinite(
        step=step,
        where="gradient",
        module=culprit.name if culprit else None,
        module_class=culprit.module_class if culprit else None,
        inputs_finite=not inputs,
        inputs=inputs,
        parameters=parameters,
        largest=culprit.largest if culprit else None,
        why_unknown=why,
        **(_place(culprit) if culprit else {}),
    )


def _place(culprit: Culprit) -> dict[str, Any]:
    """The line of the user's code that calls the module."""
    return {} if culprit.place is None else {"file": culprit.place.file, "line": culprit.place.line}


def _tried(again: Callable[..., Any], *args: Any, what: str, otherwise: Any) -> tuple[Any, str | None]:
    """What `again` returns, or why it could not: of a failure the run itself must not notice anything."""
    try:
        return again(*args), None
    except Unkeepable as error:
        return otherwise, f"the {what} pass can't be run again without a trace: {error}"
    except Exception as error:
        if of_a_signal(error):
            raise
        return otherwise, f"running the {what} pass again failed ({words(error)})"
