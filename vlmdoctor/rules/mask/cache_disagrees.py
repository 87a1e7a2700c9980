"""cache-disagrees: decoding with the cache gives other logits than one pass over the same tokens."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("cache-disagrees", "MASK170")
def cache_disagrees(influence: Influence) -> Iterator[Finding]:
    """KV cache changes the logits: decoding step by step differs from one pass.

    ## Why it matters
    Training runs in one pass, `generate` with a cache. Where the two differ, a well trained model generates
    badly: every evaluation that generates is wrong, and reinforcement learning trains on samples of another
    model. Causes are rotary positions that start again at zero with the cache, learned positions without an
    offset, masks of the wrong length, keys that are rotated twice, and image features that are inserted
    again, or lost, while decoding.

    ## Confidence and false positives
    The end of each row is cut off and decoded with its own tokens forced, by the model's own `generate` where
    it has one. A difference is reported only if decoding without the cache agrees with the one pass, and
    decoding with the cache differs by more than rounding. Training itself is not affected, so it is a
    warning; it assumes that the model will generate. Rows that end in padding or images, and models whose
    forward takes no cache, are not judged.

    ## What to do
    Count positions from the length of the cache, and rotate new keys once, before they are stored.
    """
    seen = influence.of("cache")
    if not seen.moves:
        return
    first = seen.detail.get("first")
    scale = seen.detail.get("scale")
    prefilled = first == 0
    cause = (
        "the pass that fills the cache differs already, although it is given the same tokens"
        if prefilled
        else "the pass that fills the cache agrees, and the steps on top of it don't: positions, mask or "
        "keys of the cached path are off"
    )
    yield Finding(
        f"decoding with the KV cache changes the logits: they differ from one pass by {seen.moved:.2g}"
        + (f" (the largest is {scale:.2g})" if scale else ""),
        Severity.WARNING,
        at=(f"row {seen.row}, token {seen.position}",),
        measured={"moved": seen.moved, "positions": seen.moved_positions, "first_step": first},
        threshold={"moved": seen.allowed},
        cause=f"{cause} (which was not established); without the cache they agree. Assumed: the model is to "
        "generate",
        certainty=Certainty.INFERRED,
        fix=Fix(
            "count positions from the length of the cache",
            ("position_ids = past_key_values.get_seq_length() + torch.arange(T)",),
        ),
    )


@cache_disagrees.bad
def positions_start_again() -> Influence:
    detail = {"first": 1, "scale": 2.5, "by": "generate"}
    return Influence(
        changes={
            "cache": Change(
                what="the last 3 tokens",
                moved=0.02,
                allowed=5e-4,
                effect=None,
                positions=6,
                moved_positions=4,
                row=0,
                position=13,
                detail=detail,
            )
        }
    )


@cache_disagrees.good
def the_same() -> Influence:
    detail = {"first": None, "scale": 2.5, "by": "generate"}
    return Influence(
        changes={
            "cache": Change(
                what="the last 3 tokens",
                moved=1e-6,
                allowed=5e-4,
                effect=None,
                positions=6,
                moved_positions=0,
                row=0,
                position=13,
                detail=detail,
            )
        }
    )
