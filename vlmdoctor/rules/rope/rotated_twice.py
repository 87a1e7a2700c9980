"""rotated-twice: queries or keys get the rotary embedding twice."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.rotations import Rotations
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("rotated-twice", "ROPE110", explains=("rotary-not-relative",))
def rotated_twice(rotations: Rotations) -> Iterator[Finding]:
    """RoPE applied twice to queries or keys.

    ## Why it matters
    Rotated twice, a token at position p is treated as one at 2 p: attention still depends on differences
    alone, so nothing looks wrong, but for pretrained weights every distance is doubled, and the context ends
    at half its length. It happens where rotation was moved from the attention into its caller (or into a
    kernel) and is now in both, and where cached keys are rotated again.

    ## Confidence and false positives
    The rotary tables were followed through a forward pass, operation by operation: the product of a tensor
    with a table was multiplied with a table again, with nothing but sums, slices and copies in between.

    ## What to do
    Rotate queries and keys in one place, after their projections and norms, before the keys are cached.
    """
    if not rotations.rotated:
        return
    if rotations.twice:
        yield Finding(
            "queries or keys are rotated twice by their position",
            Severity.ERROR,
            at=rotations.twice[:4],
            measured={"rotations_of_what_was_rotated": len(rotations.twice), "products": rotations.rotated},
            threshold={"rotations_of_what_was_rotated": 0},
            cause="the rotary embedding is applied to the result of an earlier rotation",
            fix=Fix("rotate once, after the projections and before the cache"),
        )


@rotated_twice.bad
def in_the_caller_and_in_the_attention() -> Rotations:
    return Rotations(rotated=16, twice=("lm.layers.0.attention",))


@rotated_twice.good
def once() -> Rotations:
    return Rotations(rotated=8)
