"""placeholder-not-a-token: the image placeholder is no token of the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, words


@rule("placeholder-not-a-token", "DATA303", explains=("image-token-count", "forward-raises"))
def placeholder_not_a_token(data: Data) -> Iterator[Finding]:
    """Image placeholder is not a token: it is split into pieces, or becomes the unknown token.

    ## Why it matters
    The model looks for one id and never finds it, so the image features are not inserted: with a check this
    raises `tokens: 0, features: 576`, without a check the image is silently left out. `convert_tokens_to_ids`
    hides it, since it returns the id of the unknown token instead of failing ([vLLM
    49279](https://github.com/vllm-project/vllm/issues/49279), [transformers
    34461](https://github.com/huggingface/transformers/issues/34461)).

    ## Confidence and false positives
    The placeholder's text is the one that the processor or the tokenizer names, and it was encoded with that
    tokenizer. Nothing is reported where neither names one. A placeholder that is one token, but another than
    the model's configuration names, is reported too.

    ## What to do
    Add it as a special token and resize the embedding.
    """
    words, pieces = data.words, data.words.placeholder_ids
    if words.placeholder is None:
        raise Unavailable("neither processor nor tokenizer names an image placeholder")
    text = words.placeholder
    if len(pieces) > 1:
        message = f"the image placeholder '{text}' is split into {len(pieces)} tokens"
        cause = f"the tokenizer has no token '{text}', so it is split into others"
    elif pieces and pieces[0] == words.unknown_id:
        message = f"the image placeholder '{text}' becomes the unknown token"
        cause = f"the tokenizer has no token '{text}'"
    elif pieces and words.image_ids and pieces[0] not in words.image_ids:
        message = f"the image placeholder '{text}' is {pieces[0]}, the model looks for {words.image_ids[0]}"
        cause = "tokenizer and configuration disagree on the placeholder's id"
    else:
        return
    if any(row.count("image") for row in data.rows):
        return  # placeholders reach the model, however they are inserted
    yield Finding(
        message,
        Severity.ERROR,
        at=("tokenizer",),
        measured={"encoded_to": list(pieces), "model_looks_for": list(words.image_ids)},
        threshold={"tokens": 1},
        cause=cause,
        fix=Fix(
            "add it as a token and resize the embedding",
            (
                f"tokenizer.add_special_tokens({{'additional_special_tokens': ['{text}']}})",
                "model.resize_token_embeddings(len(tokenizer))",
                f"model.config.image_token_id = tokenizer.convert_tokens_to_ids('{text}')",
            ),
        ),
    )


def _without_images(**changes: object) -> Data:
    from vlmdoctor.rules._healthy import sample_data

    return sample_data("muuuuuumAAASmpp", words=words(**changes))


@placeholder_not_a_token.bad
def split() -> Data:
    return _without_images(placeholder_ids=(41, 42, 43))


@placeholder_not_a_token.bad
def unknown() -> Data:
    return _without_images(placeholder_ids=(5,), unknown_id=5)


@placeholder_not_a_token.good
def one_token() -> Data:
    return healthy_data()
