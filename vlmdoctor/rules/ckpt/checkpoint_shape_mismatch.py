"""checkpoint-shape-mismatch: the checkpoint's tensors have other shapes than the model's."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.evidence.checkpoint import Checkpoint, Weight, is_resized
from vlmdoctor.evidence.reach import PATH
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.ckpt._healthy import called, sample_checkpoint, share
from vlmdoctor.rules.places import counted, listed, places

MOST_OF_A_PART = 0.5


@rule(
    "checkpoint-shape-mismatch",
    "CKPT103",
    explains=("checkpoint-not-loaded", "initial-loss", "loss-not-falling", "image-ignored"),
)
def checkpoint_shape_mismatch(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Shape mismatch with the checkpoint: these weights can't have been loaded.

    ## Why it matters
    Loaders skip such tensors with `ignore_mismatched_sizes=True`, with a hand-written filter on shapes, or
    log them where nobody reads it ([bumblebee 364](https://github.com/elixir-nx/bumblebee/issues/364)); the
    model keeps random weights there. The usual cause is a configuration that differs from the checkpoint's:
    another width, head size or number of experts ([candle
    2358](https://github.com/huggingface/candle/issues/2358)).

    ## Confidence and false positives
    The shapes are read from the checkpoint. It is an error where most of a part does not match, a warning for
    fewer. Not reported are rows that were added to or removed from a table whose other rows were loaded,
    position tables (they are interpolated), heads that a new task replaces, and tensors with as many numbers
    in another layout.

    ## What to do
    Build the model from the checkpoint's own configuration.
    """
    held = [w for w in checkpoint.weights if w.key is not None and w.key_shape is not None]
    wrong = [w for w in held if _unfit(w)]
    if not wrong:
        return
    whole = [
        role
        for role in PATH
        if share([w for w in wrong if w.role == role], [w for w in held if w.role == role]) >= MOST_OF_A_PART
    ]
    first = wrong[0]
    what = listed(called(role) for role in whole) if whole else counted(len(wrong), "tensor")
    yield Finding(
        f"shape mismatch: {what} can't have been loaded from the checkpoint",
        Severity.ERROR if whole else Severity.WARNING,
        at=places([w.name for w in wrong], [w.name for w in held]),
        measured={
            "tensors": len(wrong),
            first.name: list(first.shape),
            "in_the_checkpoint": list(first.key_shape or ()),
        },
        threshold={"tensors": 0},
        cause="the model was built with another configuration than the checkpoint's",
        fix=Fix(
            "build the model from the checkpoint's configuration, and load without ignore_mismatched_sizes"
        ),
    )


def _unfit(weight: Weight) -> bool:
    if weight.key_shape is None or weight.key_shape == weight.shape:
        return False
    if weight.renamed is not None and not weight.by_loader:
        return False  # whether the two belong together is a guess
    if weight.agreement is not None:
        return False  # the rows that both have were compared
    same_numbers = weight.numel == math.prod(weight.key_shape)
    resized_rows = is_resized(weight.name, weight.shape, weight.key_shape)
    return not (same_numbers or resized_rows or "pos" in weight.name or weight.role in ("head", "other"))


UNFIT = {"equal": None, "agreement": None, "distance": None}


@checkpoint_shape_mismatch.bad
def narrower_language_model() -> Checkpoint:
    return sample_checkpoint(
        lambda w: UNFIT | {"key_shape": (*w.shape[:-1], 256)} if w.role == "language" else {}
    )


@checkpoint_shape_mismatch.bad
def projector_of_another_width() -> Checkpoint:
    """Under the names that transformers' own renaming gives them."""
    return sample_checkpoint(
        lambda w: (
            UNFIT | {"key_shape": (50, *w.shape[1:]), "renamed": f"model.{w.name}", "by_loader": True}
            if w.role == "projector"
            else {}
        )
    )


@checkpoint_shape_mismatch.good
def tokens_added() -> Checkpoint:
    return sample_checkpoint(lambda w: {"key_shape": (600, 320)} if "embed_tokens" in w.name else {})
