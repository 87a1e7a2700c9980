"""sample-leak: the logits of one sample depend on another sample of the batch."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("sample-leak", "MASK102", explains=("future-leak", "wrong-image", "packed-samples-leak"))
def sample_leak(influence: Influence) -> Iterator[Finding]:
    """Samples of a batch attend to each other: logits depend on another sample.

    ## Why it matters
    Samples of a batch are independent: what is learned from the neighbours is missing when the model is used.
    Causes are a reshape or transpose that mixes the axes of batch and sequence, `batch_first` left at its
    default, a mean over the wrong axis, or features of one sample written into all (compare [trl
    1230](https://github.com/huggingface/trl/issues/1230), where packing did it).

    ## Confidence and false positives
    It is measured in evaluation mode, so that batch normalisation and dropout take no part. One token of one
    row is replaced, and the logits of all other rows are compared bit for bit. Mixtures of experts of limited
    capacity couple samples by design and are not judged. A model whose samples should attend to each other
    (contrastive training inside the model) would be reported wrongly.

    ## What to do
    Look at the named module: the first whose input for the other samples was the same and whose output was
    not. Check the order of the axes in its `view`, `reshape` and `transpose`.
    """
    seen = influence.of("another-sample")
    if not seen.moves:
        return
    place = seen.detail.get("place")
    found = f"{place} is the first module that mixes them" if place else "the module is not known"
    yield Finding(
        message=f"samples of a batch attend to each other: changing {seen.what} changes logits of row "
        f"{seen.row}",
        severity=Severity.ERROR,
        at=(place,) if place else (f"row {seen.row}, token {seen.position}",),
        measured={"moved": seen.moved, "moved_in_its_own_row": seen.effect},
        threshold={"moved": seen.allowed},
        cause=f"{found}; that it mixes the axes of batch and sequence is the usual reason, not a proven one",
        fix=Fix(
            "check the order of the axes there: attention over (batch, sequence) needs batch_first=True",
            ("torch.nn.MultiheadAttention(..., batch_first=True)",),
        ),
    )


@sample_leak.bad
def axes_mixed_up() -> Influence:
    detail = {"changed_row": 0, "place": "lm.layers.0.attention"}
    return Influence(
        changes={
            "another-sample": Change(
                what="token 9 of row 0",
                moved=0.01,
                allowed=4e-6,
                effect=0.4,
                positions=16,
                moved_positions=16,
                row=1,
                position=9,
                detail=detail,
            )
        }
    )


@sample_leak.good
def apart() -> Influence:
    return Influence(
        changes={
            "another-sample": Change(
                what="token 9 of row 0",
                moved=0.0,
                allowed=4e-6,
                effect=0.4,
                positions=16,
                moved_positions=0,
                row=1,
                position=0,
            )
        }
    )
