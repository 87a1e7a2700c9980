"""token-out-of-table: token ids that the embedding has no row for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_row, words
from vlmdoctor.rules.places import counted


@rule("token-out-of-table", "DATA302", explains=("forward-raises", "label-out-of-range"))
def token_out_of_table(data: Data, forward: Forward | None) -> Iterator[Finding]:
    """Token id out of range of the embedding.

    ## Why it matters
    On a CPU the forward pass raises `index out of range in self`; on a GPU a device-side assert ends the
    process without naming the token. Causes: tokens were added to the tokenizer and the embedding was not
    resized ([transformers 11102](https://github.com/huggingface/transformers/issues/11102)), `vocab_size` was
    confused with `len(tokenizer)`, or the tokenizer belongs to another model ([tokenizers
    1609](https://github.com/huggingface/tokenizers/issues/1609)).

    ## Confidence and false positives
    Ids and rows were counted. Ids that the model's configuration names as placeholders of images, video or
    sound may be out of range, since many models replace them first; negative ids, which some models use for
    images, are not judged. Nothing is reported where the model's forward pass accepted these ids.

    ## What to do
    Resize the embedding to the tokenizer's length before training.
    """
    limit = data.words.embedding_rows
    if limit is None:
        raise Unavailable("the rows of the input embedding are not known")
    if not data.rows:
        raise Unavailable("no input_ids were given")
    passed = forward is not None and forward.failure is None
    rows = [row for row in data.rows if not (passed and row.origin == "batch")]
    wrong = Counter(
        token for row in rows for token in row.ids if token >= limit and token not in data.words.image_ids
    )
    if not wrong:
        return
    token = max(wrong)
    row = next(row for row in rows if token in row.ids)
    size = data.words.tokenizer_size
    grown = size - limit if size is not None and limit < size and token < size else 0
    yield Finding(
        f"{counted(sum(wrong.values()), 'token')} out of range of the embedding: id {token}, {limit} rows",
        Severity.ERROR,
        at=(f"{row.name}, token {row.ids.index(token)}",),
        measured={"ids": sorted(wrong)[:6], "tokenizer_entries": size},
        threshold={"embedding_rows": limit},
        cause=(
            f"the tokenizer has {size} entries, {grown} more than the embedding has rows: tokens "
            "were added and the embedding was not resized"
            if grown
            else "the ids come from another vocabulary than the model's; which one was not established"
        ),
        certainty=Certainty.MEASURED if grown else Certainty.INFERRED,
        fix=Fix(
            "resize the embedding before training"
            if grown
            else "use the tokenizer that belongs to the model",
            ("model.resize_token_embeddings(len(tokenizer))",) if grown else (),
        ),
    )


@token_out_of_table.bad
def added_and_not_resized() -> Data:
    ids = (1, 3, 3, 3, 3, 100, 11, 12, 1, 13, 14, 15, 2)
    row = sample_row("miiiiuuumAAAS", ids=ids, labels=(IGNORE_INDEX,) * 9 + ids[9:])
    return sample_data(row, words=words(tokenizer_size=102))


@token_out_of_table.good
def within() -> Data:
    return healthy_data()


@token_out_of_table.good
def placeholder_beyond_the_table() -> Data:
    """As in models that replace the placeholder before they look anything up."""
    row = sample_row("miiiiuuumAAAS")
    ids = tuple(100 if i == 3 else i for i in row.ids)
    return sample_data(
        sample_row("miiiiuuumAAAS", ids=ids), words=words(image_ids=(100,), placeholder_ids=(100,))
    )
