"""positions-ignore-images: image tokens have other positions than the model computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.positions import ExpectedPositions, Positions
from vlmdoctor.finding import Finding, Fix, Inferred, Severity
from vlmdoctor.rulebook import rule


@rule("positions-ignore-images", "ROPE141")
def positions_ignore_images(positions: Positions) -> Iterator[Finding]:
    """mRoPE position ids differ from those that the model makes for its images.

    ## Why it matters
    The Qwen2-VL family gives an image token its time, row and column. Code that passes its own `position_ids`
    (packing, a fused loss, a wrapper that does not find `get_rope_index`) usually only counts tokens: nothing
    raises, the image becomes one long line, and a pretrained model gets worse ([Automodel
    3113](https://github.com/NVIDIA-NeMo/Automodel/issues/3113), [LLaMA-Factory
    7754](https://github.com/hiyouga/LlamaFactory/issues/7754), [Liger-Kernel
    276](https://github.com/linkedin/Liger-Kernel/issues/276)).

    ## Confidence and false positives
    The model's own `get_rope_index` was called with the batch's ids, grids and mask, and compared with the
    positions that reached its rotary table, token by token. A number added to all positions of a row makes no
    difference, since rotary positions are relative, and rows of several samples are not judged. One axis for
    all, or the axes in another order, is an error; other differences are a warning.

    ## What to do
    Leave `position_ids` out, or make them with the model's own function.
    """
    own = positions.expected
    if own is None:
        raise Unavailable(positions.no_expected or "the model has no positions of several axes")
    if not own.differing_rows:
        return
    if own.flat:
        what, cause = "count tokens in one line", "all axes have the same number"
    elif own.permuted:
        what, cause = "have their axes in another order", "they are the model's own with the axes exchanged"
    else:
        what, cause = f"are not those of {own.function}", Inferred("what made them was not established")
    by = (
        f"the batch gives them as {positions.given}"
        if positions.given
        else "the model made them in its forward"
    )
    at: tuple[str, ...] = (positions.given or "position_ids",)
    example = {}
    if own.example is not None:
        row, token, mine, used = own.example
        at = (*at, f"row {row}, token {token}")
        example = {"used": list(used), "own": list(mine)}
    yield Finding(
        f"position ids {what}: {own.differing} of {own.tokens} tokens have others than the model makes",
        Severity.ERROR if own.flat or own.permuted else Severity.WARNING,
        at=at,
        measured={"tokens": own.tokens, "differing": own.differing, "rows": own.differing_rows, **example},
        threshold={"differing": 0},
        cause=f"{by}, and {cause}",
        fix=Fix(
            "leave position_ids out, or make them with the model's own function",
            (f"position_ids, _ = model.model.{own.function}(input_ids, ...)",),
        ),
    )


_SAME = ExpectedPositions(
    function="get_rope_index",
    axes=3,
    rows=2,
    differing_rows=0,
    differing=0,
    tokens=38,
    flat=False,
    permuted=False,
)


@positions_ignore_images.bad
def one_line() -> Positions:
    own = dataclasses.replace(
        _SAME, differing_rows=2, differing=30, flat=True, example=(0, 5, (4, 4, 5), (5, 5, 5))
    )
    return Positions(given="position_ids", expected=own)


@positions_ignore_images.bad
def axes_exchanged() -> Positions:
    own = dataclasses.replace(_SAME, differing_rows=2, differing=4, permuted=True)
    return Positions(given="position_ids", expected=own)


@positions_ignore_images.good
def as_the_model_makes_them() -> Positions:
    return Positions(given=None, expected=_SAME)
