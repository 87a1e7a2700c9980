"""frozen-norm-drifts: batch norms of a frozen part still change their statistics."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.norms import Norms
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

NAMED = 4


@rule("frozen-norm-drifts", "PARAM312")
def frozen_norm_drifts(norms: Norms) -> Iterator[Finding]:
    """A frozen backbone is in training mode, so that its batch norms go on changing.

    ## Why it matters
    `requires_grad = False` stops the optimizer and nothing else. In training mode a batch norm normalises by
    the batch at hand and moves its running mean and variance with every forward pass: features of a picture
    depend on its neighbours in the batch, and the backbone that is saved is not the one that was loaded. In
    evaluation the model then sees other features than it was trained on.

    ## How sure it is
    Read off the modules: the norm is in training mode, keeps statistics, and nothing around it learns. It
    is a warning, since statistics may be meant to adapt to new pictures.

    ## What to do
    Call `eval()` on the frozen part after each `model.train()`, best in the model's own `train`.
    """
    if not norms.frozen:
        return
    yield Finding(
        f"{len(norms.frozen)} batch norms of a frozen part are in training mode: their statistics drift",
        Severity.WARNING,
        at=norms.frozen[:NAMED],
        measured={"frozen_in_training_mode": len(norms.frozen), "batch_norms": len(norms.moving)},
        threshold={"frozen_in_training_mode": 0},
        cause="model.train() reaches frozen parts too; assumed: the statistics are meant to be frozen too",
        fix=Fix("put the frozen part back into evaluation mode", ("model.train(); model.backbone.eval()",)),
    )


@frozen_norm_drifts.bad
def a_frozen_backbone() -> Norms:
    return Norms(("backbone.1", "backbone.4", "head.1"), ("backbone.1", "backbone.4"))


@frozen_norm_drifts.good
def all_of_it_learns() -> Norms:
    return Norms(("backbone.1",), ())
