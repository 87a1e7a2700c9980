"""stop-token-not-supervised: answers are supervised, and their stop tokens are not."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.finding import Certainty, Finding, Fix, Inferred, Severity
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_row, words
from vlmdoctor.rules.places import counted


@rule("stop-token-not-supervised", "LOSS305", formerly=("end-token-masked", "LOSS341"))
def stop_token_not_supervised(data: Data) -> Iterator[Finding]:
    """Stop token (EOS) not in labels: the model never learns to stop.

    ## Why it matters
    The model generates until the token limit, often by asking itself the next question. Usual causes: padding
    is the end-of-text token and the collator masks all padding ([unsloth
    416](https://github.com/unslothai/unsloth/issues/416), [llm-course
    33](https://github.com/mlabonne/llm-course/issues/33)); the stop token is never appended ([TRL
    1623](https://github.com/huggingface/trl/issues/1623)); or the template puts it into the next message,
    outside the supervised part ([TRL 5988](https://github.com/huggingface/trl/issues/5988)).

    ## Confidence and false positives
    Answers are identified by the chat template's own markers, or by a masked question before a supervised
    answer; their labels were counted in all rows that were read. It is an error where a stop token is in the
    text and is masked because padding has the same id, else a warning: a model that can stop already may not
    need it. Answers that are truncated at the maximum length are not counted.

    Without a tokenizer, the tokens that end a text are read from the model's generation settings or its
    configuration. It is reported where in every row such a token follows the last label, is attended to, and
    is masked, and where no such token is a label anywhere.

    ## What to do
    Keep the stop token after each answer in the labels; give padding a token of its own.
    """
    yield from _by_answers(data) if data.tokenizer_given else _behind_the_last_label(data)


def _by_answers(data: Data) -> Iterator[Finding]:
    """With a tokenizer: no answer ends with a supervised stop token."""
    rows = [row for row in data.needing_labels() if _has_answer(row) and not _cut(row, data)]
    if not rows or any(row.count("stop", supervised=True) for row in rows):
        return
    if any(_ends_in(row, data.words.eos_ids + data.words.stop_ids) for row in rows):
        return
    there = sum(row.count("stop") for row in rows)
    by_padding = data.words.pad_is_eos and there > 0
    stop = data.words.stop_ids[0] if data.words.stop_ids else None
    name = "the stop token" if stop is None else f"the stop token {data.words.named(stop)}"
    if by_padding:
        cause = (
            "padding and end of text are the same token here, and all their labels are masked, as by a "
            "collator that masks by the padding id"
        )
    elif there:
        cause = Inferred(
            "it follows the answers, and its labels are masked; what masked them was not established"
        )
    else:
        cause = "no answer is followed by one: it is not appended, or comes with the next message only"
    yield Finding(
        f"{name} is not in the labels: none of {counted(len(rows), 'answer')} ends with a supervised one",
        Severity.ERROR if by_padding else Severity.WARNING,
        at=("labels", *(row.name for row in rows[:4])),
        measured={
            "rows_with_answers": len(rows),
            "stop_tokens": there,
            "supervised_stop_tokens": 0,
            "padding_is_end_of_text": data.words.pad_is_eos,
        },
        threshold={"supervised_stop_tokens": 1},
        cause=cause,
        fix=_fix(by_padding, there),
    )


def _behind_the_last_label(data: Data) -> Iterator[Finding]:
    """Without one: the token that ends a text follows the last label of every row, masked."""
    ends = set(data.words.eos_ids)
    if not ends:
        raise Unavailable("the model's configuration does not name the token that ends a text")
    rows = [row for row in data.needing_labels() if any(row.seen)]
    if not rows or any(label in ends for row in rows for label in row.labels or ()):
        return
    if not all(_ends_hidden(row, ends, data.words.padding_id) for row in rows):
        return
    same = data.words.padding_id in ends
    first = sorted(ends)[0]
    yield Finding(
        f"the stop token (EOS) is not in the labels: masked in all {counted(len(rows), 'row')}, right after "
        "the last label",
        Severity.ERROR if same else Severity.WARNING,
        at=("labels", *(row.name for row in rows[:4])),
        measured={"rows": len(rows), "supervised_end_tokens": 0, "padding_is_end_of_text": same},
        threshold={"supervised_end_tokens": 1},
        cause=f"padding and end of text are the same token ({first}), whose labels are all masked"
        if same
        else f"the token ({first}) is in the text and its label is masked; what masked it was not "
        "established",
        certainty=Certainty.MEASURED if same else Certainty.INFERRED,
        fix=Fix(
            "mask labels by the attention mask, not by the padding id",
            (f"labels[attention_mask == 0] = {IGNORE_INDEX}",),
        ),
    )


def _ends_hidden(row: Row, ends: set[int], padding: int | None) -> bool:
    """Whether the real token after the row's last label ends the text."""
    labels = row.labels or ()
    after = max(at for at, label in enumerate(labels) if label != IGNORE_INDEX) + 1
    if after >= len(row.ids) or row.ids[after] not in ends:
        return False
    if row.attended is not None:
        return row.attended[after]
    return padding not in ends  # else it may as well be padding


def _has_answer(row: Row) -> bool:
    """A supervised answer: by its speaker, or as supervised text after a masked beginning."""
    if row.roles_known:
        return row.count("assistant", supervised=True) > 0
    return row.count("other", supervised=True) > 0 and _masked_start(row)


def _masked_start(row: Row) -> bool:
    """Whether text comes before the first label, so that the row is a question with an answer."""
    first = row.seen.index(True) if True in row.seen else 0
    return row.roles[:first].count("other") > 1


def _cut(row: Row, data: Data) -> bool:
    """Whether the row has the maximum length, so that its end may have been truncated."""
    limits = {limit for limit in (data.max_length, data.words.max_positions) if limit}
    return row.length in limits


def _ends_in(row: Row, ends: tuple[int, ...]) -> bool:
    """Whether a label is an end of text under another name."""
    return any(seen and label in ends for seen, label in zip(row.seen, row.labels or (), strict=True))


def _fix(by_padding: bool, there: int) -> Fix:
    if by_padding:
        return Fix(
            "mask by the attention mask, or give padding a token of its own",
            (f"labels[attention_mask == 0] = {IGNORE_INDEX}", "tokenizer.pad_token = tokenizer.unk_token"),
        )
    if there:
        return Fix("keep the stop token after each answer in the labels")
    return Fix(
        "append it to each answer before encoding, inside the supervised part",
        ("answer = answer + tokenizer.eos_token",),
    )


@stop_token_not_supervised.bad
def masked_with_the_padding() -> Data:
    return sample_data("miiiiuuumAAAspp", "miiiiuumAAspppp", words=words(padding_id=2, pad_is_eos=True))


@stop_token_not_supervised.bad
def never_appended() -> Data:
    return sample_data("miiiiuuumAAApp", "miiiiuumAApppp")


@stop_token_not_supervised.bad
def never_appended_and_no_template() -> Data:
    rows = [
        sample_row("oiiiioooOOOO", i, roles_known=False, attended=None, ids=tuple(range(20, 32)))
        for i in (0, 1)
    ]
    return sample_data(*rows)


@stop_token_not_supervised.good
def supervised() -> Data:
    return healthy_data()


@stop_token_not_supervised.good
def text_in_pieces_for_pretraining() -> Data:
    """Everything supervised, and texts cut anywhere: no answers to end."""
    return sample_data(sample_row("oOOOOOOOOOO"), sample_row("oOOOOOOOOOO", 1))


def _ended_row(number: int, *, end: int) -> Row:
    ids = (1, *range(20 + number, 34 + number), 2)
    labels = (*(IGNORE_INDEX,) * 8, *ids[8:15], end)
    return sample_row("ooooooooOOOOOOOo", number, roles_known=False, ids=ids, labels=labels)


@stop_token_not_supervised.bad
def masked_with_the_padding_and_no_tokenizer() -> Data:
    known = words(padding_id=2, pad_is_eos=True, eos_ids=(2,))
    return sample_data(
        _ended_row(0, end=IGNORE_INDEX), _ended_row(1, end=IGNORE_INDEX), words=known, tokenizer_given=False
    )


@stop_token_not_supervised.good
def supervised_and_no_tokenizer() -> Data:
    return sample_data(
        _ended_row(0, end=2), _ended_row(1, end=2), words=words(eos_ids=(2,)), tokenizer_given=False
    )
