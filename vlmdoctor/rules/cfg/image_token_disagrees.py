"""image-token-disagrees: the processor writes another placeholder than the model looks for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vlmdoctor.evidence.config import Configuration
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import listed

_IMAGE = re.compile(r"image|img|patch|soft|speaker", re.IGNORECASE)


@rule("image-token-disagrees", "CFG305", explains=("forward-raises", "image-ignored"))
def image_token_disagrees(configuration: Configuration) -> Iterator[Finding]:
    """Image token id of the configuration differs from the processor's.

    ## Why it matters
    The model puts image features where it finds its own placeholder. If the tokenizer gives the placeholder
    another id, splits it into pieces or maps it to the unknown token, the model finds no placeholder: the
    forward pass counts 0 image tokens, or the images are ignored ([transformers
    34461](https://github.com/huggingface/transformers/issues/34461), [vllm
    49279](https://github.com/vllm-project/vllm/issues/49279)).

    ## Confidence and false positives
    Certain for inputs from this processor: all ids that it or its tokenizer calls image tokens are compared.
    Nothing is reported where the tokenizer's text for the configuration's id names an image.

    ## What to do
    Add the placeholder as a special token and set `image_token_id` to its id.
    """
    expected, written = configuration.image_token_id, configuration.placeholder_ids
    if expected is None or not written or expected in written:
        return
    if configuration.image_token is not None and _IMAGE.search(configuration.image_token):
        return  # a family with several kinds of image tokens
    yield Finding(
        f"the model looks for image token {expected}, the processor writes "
        f"{listed(str(token) for token in written)}",
        Severity.ERROR,
        at=("config.image_token_id",),
        measured={"written": list(written), "tokenizers_text": configuration.image_token},
        threshold={"image_token_id": expected},
        cause="the tokenizer gives the placeholder another id than the configuration, or has no such token",
        fix=Fix(
            "use the tokenizer's id, after adding the placeholder as a special token if needed",
            ("model.config.image_token_id = processor.image_token_id",),
        ),
    )


@image_token_disagrees.bad
def another_tokenizer() -> Configuration:
    return Configuration(image_token_id=32000, placeholder_ids=(529,))


@image_token_disagrees.good
def patches_of_their_own() -> Configuration:
    """Llama 4's processor names the image, and writes its patches."""
    return Configuration(image_token_id=200092, image_token="<|patch|>", placeholder_ids=(200090,))


@image_token_disagrees.good
def one_of_several() -> Configuration:
    """Gemma3's processor knows two: where an image begins, and its soft tokens."""
    return Configuration(image_token_id=262144, placeholder_ids=(255999, 262144))
