"""mask-hides-answers: the attention mask hides every supervised token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_row

FEWEST = 2


@rule(
    "mask-hides-answers",
    "MASK310",
    explains=(
        "mask-hides-tokens",
        "padding-supervised",
        "image-without-effect",
        "no-gradient",
        "attention-backends-differ",
        "padding-moves-logits",
        "non-finite-forward",
    ),
)
def mask_hides_answers(data: Data) -> Iterator[Finding]:
    """Attention mask hides every supervised token: it is inverted, or 0 everywhere.

    ## Why it matters
    No token attends to what the mask hides, so the answers are learned without the text before them. Nothing
    raises: a fully masked row gets uniform attention, or zeros, or NaN, depending on the attention back end.
    Masks of other libraries are inverted (`key_padding_mask` of `torch.nn.MultiheadAttention` is True at
    padding), and a comparison with ids of another dtype easily gives an empty mask.

    ## Confidence and false positives
    Mask, ids and labels were compared position by position, without padding tokens. It is reported only where
    the mask hides every supervised token in every row of the batch.

    ## What to do
    Take the mask from the tokenizer's call that made the ids: 1 where there is a token, 0 at padding.
    """
    if data.encoder_decoder:
        raise Unavailable("the labels are of another sequence than the ids")
    rows = [row for row in data.needing_labels() if row.attended is not None]
    if not rows:
        raise Unavailable("the batch has no attention mask with one value for each token")
    hidden = [_supervised(row, data, attended=False) for row in rows]
    if any(_supervised(row, data, attended=True) for row in rows) or sum(hidden) < FEWEST:
        return
    nothing_left = not any(any(row.attended or ()) for row in rows)
    yield Finding(
        "the attention mask is 0 everywhere: no token attends to another"
        if nothing_left
        else "the attention mask is inverted: it is 1 at padding and 0 at the text"
        if _inverted(rows, data)
        else "the attention mask hides every supervised token",
        Severity.ERROR,
        at=("attention_mask", *[row.name for row in rows][:4]),
        measured={"labels": sum(hidden), "of_them_attended_to": 0, "rows": len(rows)},
        threshold={"of_them_attended_to": sum(hidden)},
        cause="the model expects 1 at tokens and 0 at padding",
        fix=Fix(
            "make the mask from the final ids",
            ("attention_mask = (input_ids != tokenizer.pad_token_id).long()",),
        ),
    )


def _supervised(row: Row, data: Data, *, attended: bool) -> int:
    """How many supervised tokens other than padding the mask lets through, or hides."""
    return sum(
        seen and token != data.words.padding_id and through is attended
        for seen, token, through in zip(row.seen, row.ids, row.attended or (), strict=True)
    )


def _inverted(rows: Sequence[Row], data: Data) -> bool:
    """Whether nothing is attended to but a run of one token at an end of a row: its padding."""
    left = [{i for i, through in zip(row.ids, row.attended or (), strict=True) if through} for row in rows]
    tokens = set().union(*left)
    return tokens == {data.words.padding_id} or len(tokens) == 1


@mask_hides_answers.bad
def inverted() -> Data:
    letters = ("miiiiuuumAAASmpp", "miiiiuumAASmpppp")
    return sample_data(
        *(
            sample_row(text, i, attended=tuple(letter == "p" for letter in text))
            for i, text in enumerate(letters)
        )
    )


@mask_hides_answers.bad
def zeros() -> Data:
    return sample_data(sample_row("miiiiuuumAAASm", attended=(False,) * 14))


@mask_hides_answers.good
def from_the_tokenizer() -> Data:
    return healthy_data()
