"""sequence-too-long: rows are longer than the model has positions for."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data
from vlmdoctor.rules.places import counted


@rule("sequence-too-long", "DATA304", explains=("forward-raises",))
def sequence_too_long(data: Data, forward: Forward | None) -> Iterator[Finding]:
    """Sequence longer than the model's maximum number of positions, image tokens included.

    ## Why it matters
    With rotary positions nothing raises: the model is trained at distances beyond those of its pretraining
    ([LLaVA 999](https://github.com/haotian-liu/LLaVA/issues/999)). With a position embedding table the
    forward pass raises an `IndexError`. Tiled images take many tokens: five tiles of 576 tokens are 2,880
    before the first word ([TinyLLaVA 192](https://github.com/TinyLLaVA/TinyLLaVA_Factory/issues/192)).

    ## Confidence and false positives
    The tokens were counted without padding; the limit is the configuration's, stretched by its rotary
    scaling. It is a warning, unless the forward pass raised. Packed rows whose positions start again for each
    sample are not judged.

    ## What to do
    Use smaller images or fewer tiles, drop the longest samples, or extend the positions.
    """
    limit = data.words.max_positions
    if limit is None:
        raise Unavailable("the configuration names no largest number of positions")
    if not data.rows:
        raise Unavailable("no input_ids were given")
    if data.encoder_decoder or any(key == "position_ids" for key, _ in data.shapes):
        return
    rows = [row for row in data.rows if row.length > limit]
    if not rows:
        return
    longest = max(rows, key=lambda row: row.length)
    raised = forward is not None and forward.failure is not None and "ndex" in forward.failure.type
    yield Finding(
        f"{counted(len(rows), 'row')} of {len(data.rows)} longer than the model's {limit} positions: "
        f"up to {longest.length} tokens",
        Severity.ERROR if raised else Severity.WARNING,
        at=tuple(row.name for row in rows[:4]),
        measured={"tokens": longest.length, "of_them_image_tokens": longest.count("image")},
        threshold={"max_position_embeddings": limit},
        cause="text and image tokens together exceed the positions of the configuration",
        fix=Fix("use smaller images or fewer tiles, drop the longest samples, or extend the positions"),
    )


@sequence_too_long.bad
def more_image_tokens_than_positions() -> Data:
    return sample_data("m" + 70 * "i" + "uuumAAASm", "miiiiuumAASm")


@sequence_too_long.good
def short_enough() -> Data:
    return healthy_data()


@sequence_too_long.good
def only_padded_beyond() -> Data:
    return sample_data("miiiiuuumAAASm" + 60 * "p")
