"""tokens-without-rows: the tokenizer has tokens for which the tables have no row."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.config import Configuration
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted, listed

SHOWN = 4


@rule("tokens-without-rows", "CFG303", explains=("forward-raises",))
def tokens_without_rows(configuration: Configuration) -> Iterator[Finding]:
    """Tokenizer has tokens without a row in the embedding or the output head.

    ## Why it matters
    Tokens were added and the embedding was not resized (`len(tokenizer)` is not `tokenizer.vocab_size`): the
    first text with such a token ends in `index out of range` or a device-side assert ([transformers
    11102](https://github.com/huggingface/transformers/issues/11102), [tokenizers
    1609](https://github.com/huggingface/tokenizers/issues/1609)). A token with a row in the embedding and
    none in the head fails as a label ([transformers
    33819](https://github.com/huggingface/transformers/issues/33819)).

    ## Confidence and false positives
    Ids and rows are counted. Whether the data will have such a token is not known, so it is a warning. Image
    placeholders are not judged, since models replace them before the embedding, and a head with fewer rows is
    Mllama's design as long as only its placeholder lacks one.

    ## What to do
    `model.resize_token_embeddings(len(tokenizer))` after adding tokens, before making the optimizer.
    """
    rows, missing = configuration.embedding_rows, configuration.beyond_embedding
    table, what = configuration.embedding, "embedding"
    if not missing:
        rows, missing = configuration.head_rows, configuration.beyond_head
        table, what = configuration.head, "output head"
    if not missing or rows is None:
        return
    names = [repr(token) for token, _ in missing[:SHOWN]]
    more = [f"{len(missing) - SHOWN} more"] if len(missing) > SHOWN else []
    yield Finding(
        f"{counted(len(missing), 'token')} of the tokenizer {'have' if len(missing) > 1 else 'has'} no row "
        f"in the {what}: {listed([*names, *more])}",
        Severity.WARNING,
        at=(table or what,),
        measured={"rows": rows, "tokenizer_size": configuration.tokens, "largest_id": missing[-1][1]},
        threshold={"rows": missing[-1][1] + 1},
        cause="tokens were added to the tokenizer and the tables were not resized; a text with one of them "
        "will raise",
        fix=Fix(
            "resize the tables, then make the optimizer", ("model.resize_token_embeddings(len(tokenizer))",)
        ),
    )


@tokens_without_rows.bad
def added_and_not_resized() -> Configuration:
    return Configuration(
        embedding="model.embed_tokens.weight",
        embedding_rows=32000,
        head_rows=32000,
        vocab_size=32000,
        tokens=32002,
        beyond_embedding=(("<loc>", 32000), ("</loc>", 32001)),
    )


@tokens_without_rows.good
def padded_rows() -> Configuration:
    return Configuration(embedding_rows=32064, head_rows=32064, vocab_size=32064, tokens=32002)
