"""end-token-masked: the token that ends the text comes right behind the last label, and is hidden."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import IGNORED, Data, Row
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.data_examples import sample_data, sample_row, words
from vlmdoctor.rules.places import counted


@rule("end-token-masked", "LOSS341")
def end_token_masked(data: Data) -> Iterator[Finding]:
    """The label of the end-of-text token is hidden in every row, so that the model never learns to stop.

    ## Why it matters
    The model writes on until the limit of generated tokens. The usual cause is a padding token that is the
    end of text, and a collator that hides the labels of all padding, the last token of each answer with it
    ([unsloth 416](https://github.com/unslothai/unsloth/issues/416), [llm-course
    33](https://github.com/mlabonne/llm-course/issues/33)).

    ## How sure it is
    Which tokens end a text is read from the model's generation settings or its configuration. It fires where
    in every row one of them follows the last label, is attended to, and is hidden, and where no such token
    is a label anywhere. It is a warning: a model that can stop already may get along without, and an error
    where padding has the same id. With a tokenizer `stop-token-not-supervised` looks at this instead.

    ## What to do
    Hide labels by the attention mask and not by the id of padding.
    """
    if data.tokenizer_given:
        raise Unavailable("a tokenizer was given, so that stop-token-not-supervised tells it")
    ends = set(data.words.eos_ids)
    if not ends:
        raise Unavailable("the model does not say which token ends a text")
    rows = [row for row in data.needing_labels() if any(row.seen)]
    if not rows or any(label in ends for row in rows for label in row.labels or ()):
        return
    if not all(_ends_hidden(row, ends, data.words.padding_id) for row in rows):
        return
    same = data.words.padding_id in ends
    first = sorted(ends)[0]
    yield Finding(
        f"the token that ends a text is never learned: hidden in all {counted(len(rows), 'row')}, right "
        "behind the last label",
        Severity.ERROR if same else Severity.WARNING,
        at=("labels", *(row.name for row in rows[:4])),
        measured={"rows": len(rows), "supervised_end_tokens": 0, "padding_is_end_of_text": same},
        threshold={"supervised_end_tokens": 1},
        cause=f"padding and end of text are the same token ({first}), whose labels are all hidden"
        if same
        else f"the token ({first}) stands in the text and its label is hidden; by what was not established",
        fix=Fix(
            "hide labels by the attention mask, not by the id of padding",
            (f"labels[attention_mask == 0] = {IGNORED}",),
        ),
        links=(
            "https://github.com/unslothai/unsloth/issues/416",
            "https://github.com/mlabonne/llm-course/issues/33",
        ),
    )


def _ends_hidden(row: Row, ends: set[int], padding: int | None) -> bool:
    """Whether the real token behind the row's last label ends the text."""
    labels = row.labels or ()
    after = max(at for at, label in enumerate(labels) if label != IGNORED) + 1
    if after >= len(row.ids) or row.ids[after] not in ends:
        return False
    if row.attended is not None:
        return row.attended[after]
    return padding not in ends  # else it may as well be padding


def _row(number: int, *, end: int) -> Row:
    ids = (1, *range(20 + number, 34 + number), 2)
    labels = (*(IGNORED,) * 8, *ids[8:15], end)
    return sample_row("ooooooooOOOOOOOo", number, roles_known=False, ids=ids, labels=labels)


@end_token_masked.bad
def hidden_with_the_padding() -> Data:
    known = words(padding_id=2, pad_is_eos=True, eos_ids=(2,))
    return sample_data(_row(0, end=IGNORED), _row(1, end=IGNORED), words=known, tokenizer_given=False)


@end_token_masked.good
def learned() -> Data:
    return sample_data(_row(0, end=2), _row(1, end=2), words=words(eos_ids=(2,)), tokenizer_given=False)
