"""packed-samples-leak: samples that share a row attend to each other."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Finding, Fix, Inferred, Severity
from vlmdoctor.rulebook import rule


@rule("packed-samples-leak", "MASK103")
def packed_samples_leak(influence: Influence) -> Iterator[Finding]:
    """Packed samples attend to each other: block-diagonal mask missing.

    ## Why it matters
    Several short samples in one row save padding, but without a mask between them each sample attends to
    those before it, and learns from unrelated texts. Measured in [functionary
    265](https://github.com/MeetKai/functionary/issues/265): 44.1 with the leak, 37.6 without; see also [trl
    1230](https://github.com/huggingface/trl/issues/1230) and [transformers
    31629](https://github.com/huggingface/transformers/issues/31629).

    ## Confidence and false positives
    A token of the first sample in a row is replaced, and the logits of the other samples in that row are
    compared. That the row is packed is inferred from `position_ids` that start again at 0, or from segment
    numbers. It is a warning, since some pretrain on concatenated texts on purpose. The assumption is that
    positions which start again should keep the samples apart.

    ## What to do
    In transformers, leave out `attention_mask`, pass `position_ids` that start again, and turn the cache off
    (`use_cache=False`, as the Trainer does), with a back end that supports it; in your own attention,
    compare the segment numbers:

        mask = (segment[:, :, None] == segment[:, None, :])[:, None] & causal
    """
    seen = influence.of("packed-neighbour")
    if not seen.moves:
        return
    given = seen.detail.get("told_by", "position_ids")
    masked, fix = _why(seen)
    cause = f"{masked}; assumed: samples whose {given} start again are meant to be separate"
    yield Finding(
        message=f"packed samples attend to each other: changing {seen.what} changes {seen.moved_positions} "
        f"of {seen.positions} logits of the other samples in that row",
        severity=Severity.WARNING,
        at=(f"row {seen.row}, token {seen.position}",),
        measured={"moved": seen.moved, "moved_in_its_own_sample": seen.effect, "told_by": given},
        threshold={"moved": seen.allowed},
        cause=Inferred(cause) if isinstance(masked, Inferred) else cause,
        fix=fix,
    )


def _why(seen: Change) -> tuple[str, Fix]:
    if seen.detail.get("cache"):
        return (
            "the model makes a cache (use_cache is on unless it is turned off), and with one transformers "
            "does not look for packed samples; without it they are kept apart",
            Fix(
                "train without a cache, as the Trainer does by itself",
                ("model.config.use_cache = False  # or pass use_cache=False",),
            ),
        )
    masked = (
        "an attention_mask is passed along, with which transformers does not look for packed samples"
        if seen.detail.get("attention_mask")
        else "no mask keeps the samples of a row apart"
    )
    return Inferred(f"{masked} (inferred)"), Fix(
        "let no token attend across the samples: drop the attention_mask, or pass a block-diagonal one",
        ('batch.pop("attention_mask")  # transformers reads the borders off the position_ids then',),
    )


@packed_samples_leak.bad
def a_cache_that_nobody_needs() -> Influence:
    detail = {"told_by": "position_ids", "attention_mask": False, "cache": True}
    return Influence(
        changes={
            "packed-neighbour": Change(
                what="token 7 of row 0",
                moved=3e-3,
                allowed=4e-6,
                effect=0.4,
                positions=8,
                moved_positions=8,
                row=0,
                position=8,
                detail=detail,
            )
        }
    )


@packed_samples_leak.bad
def mask_of_ones() -> Influence:
    detail = {"told_by": "position_ids", "attention_mask": True}
    return Influence(
        changes={
            "packed-neighbour": Change(
                what="token 7 of row 0",
                moved=3e-3,
                allowed=4e-6,
                effect=0.4,
                positions=8,
                moved_positions=8,
                row=0,
                position=8,
                detail=detail,
            )
        }
    )


@packed_samples_leak.good
def kept_apart() -> Influence:
    return Influence(
        changes={
            "packed-neighbour": Change(
                what="token 7 of row 0",
                moved=0.0,
                allowed=4e-6,
                effect=0.4,
                positions=8,
                moved_positions=0,
                row=0,
                position=8,
            )
        }
    )
