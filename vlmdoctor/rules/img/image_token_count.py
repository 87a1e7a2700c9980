"""image-token-count: the numbers of image tokens and image features differ."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.shapes import Shapes
from vlmdoctor.finding import Finding, Fix, Inferred, Severity
from vlmdoctor.knowledge.parameter_names import role_of
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_row
from vlmdoctor.rules.places import counted

_MISMATCH = re.compile(r"image (features|tokens) and image (features|tokens) do not match", re.IGNORECASE)
# Keys of whatever could fill a placeholder.
_PIXELS = re.compile(r"pixel|image|img|patch|vision|visual|video|audio|feature|embed", re.IGNORECASE)
AN_IMAGE = 4  # placeholders in a row
LINKS = (
    "https://github.com/huggingface/trl/issues/5927",
    "https://github.com/huggingface/transformers/issues/37342",
    "https://github.com/QwenLM/Qwen3-VL/issues/1123",
)


@rule("image-token-count", "IMG301", explains=("forward-raises", "no-gradient"))
def image_token_count(data: Data, forward: Forward | None, shapes: Shapes | None) -> Iterator[Finding]:
    """Number of image tokens differs from the number of image features.

    ## Why it matters
    `Image features and image tokens do not match` ends a run, often after hours: a long sample was truncated
    in the middle of an image ([TRL 5927](https://github.com/huggingface/trl/issues/5927)), the prompt has no
    placeholder at all ([transformers 36002](https://github.com/huggingface/transformers/issues/36002)), or
    processor and model disagree on the number per image ([transformers
    34447](https://github.com/huggingface/transformers/issues/34447)). With the check switched off
    (`TRANSFORMERS_DISABLE_TORCH_CHECK`) features go to the wrong positions silently.

    ## Confidence and false positives
    The placeholders were counted in the ids. The number of features follows from an image's grid and the
    configuration, and is used only for models where this tool can compute it. Nothing is reported where the
    model's forward pass (or a dry run) accepted the batch. The numbers in the model's own message are not
    used, since some versions print them in different units.

    ## What to do
    Never truncate rows with images: drop long samples, or use smaller images.
    """
    if not data.words.image_ids:
        raise Unavailable("the image placeholder's id is not known")
    if not data.rows:
        raise Unavailable("no input_ids were given")
    if (dropped := _without_pixels(data)) is not None:
        yield dropped
        return
    passed = any(one is not None and one.failure is None for one in (forward, shapes))
    failure = forward.failure if forward is not None else None
    raised = failure is not None and _MISMATCH.search(failure.message) is not None
    # An exception inside the tower or the projector has nothing to do with the placeholders.
    earlier = failure is not None and role_of(failure.module or "") in ("vision", "projector")
    rows = [row for row in data.rows if not ((passed or earlier) and row.origin == "batch")]
    known = [row for row in rows if row.features is not None]
    wrong = [row for row in known if row.count("image") != sum(row.features or ())]
    cut = [row for row in rows if _cut(row)]
    if wrong:
        placeholders = sum(row.count("image") for row in wrong)
        features = sum(sum(row.features or ()) for row in wrong)
        message = f"{counted(features, 'image feature')} for {counted(placeholders, 'image token')}"
        culprit = next((row for row in wrong if row in cut), wrong[0])
    elif raised:
        placeholders = sum(row.count("image") for row in rows if row.origin == "batch")
        features = None
        message = f"{counted(placeholders, 'image token')} for another number of image features"
        culprit = cut[0] if cut else rows[0]
    else:
        return
    yield Finding(
        message,
        Severity.ERROR,
        at=(culprit.name,),
        measured={
            "image_tokens": placeholders,
            "image_features": features,
            "tokens_in_the_row": culprit.length,
        },
        cause=_cause(culprit, culprit in cut, placeholders, sum(len(row.features or ()) for row in wrong)),
        fix=_fix(culprit in cut, placeholders),
        links=LINKS,
    )


def _without_pixels(data: Data) -> Finding | None:
    """Placeholders in a batch without images: most models embed them as words then."""
    placeholders = sum(row.count("image") for row in data.rows)
    longest = max((n for row in data.rows for role, _, n in row.runs if role == "image"), default=0)
    # One alone may be a random id of a batch made by hand.
    if longest < AN_IMAGE or not data.shapes or any(_PIXELS.search(key) for key, _ in data.shapes):
        return None
    return Finding(
        f"{counted(placeholders, 'image token')} in the text, and the batch has no images",
        Severity.ERROR,
        at=("pixel_values",),
        measured={"image_tokens": placeholders, "keys": [key for key, _ in data.shapes]},
        cause="the collator, or a list of columns such as remove_unused_columns leaves, dropped the pixels",
        fix=Fix("keep the image columns", ("TrainingArguments(..., remove_unused_columns=False)",)),
        links=("https://github.com/huggingface/transformers/issues/27535",),
    )


def _cut(row: Row) -> bool:
    """Whether the text ends or begins in the middle of an image: nothing follows the placeholders."""
    inside = [role for role in row.roles if role != "padding"]
    return len(inside) > 1 and (
        inside[-1] == "image" or (inside[0] == "image" and len(row.features or (1,)) > 1)
    )


def _cause(row: Row, cut: bool, placeholders: int, images: int) -> str:
    if cut:
        return (
            f"the sequence was truncated at {row.length} tokens: it ends in the middle of the placeholders, "
            "while all pixels are there"
        )
    if placeholders == 0:
        return "the text has no image placeholder: the prompt or the chat template left it out"
    each = row.features or ()
    if each and placeholders == images:
        return (
            "there is one placeholder for each image: they were not expanded to one for each feature, as the "
            "processor does"
        )
    if each and len(set(each)) == 1 and placeholders % each[0] == 0:
        return f"the placeholders are for {counted(placeholders // each[0], 'image')}, and there are {images}"
    per_image = f"{each[0]} for each image" if each and len(set(each)) == 1 else "another number"
    return (
        f"the model makes {per_image} according to its configuration; the processor that wrote the "
        "placeholders was "
        "set up for another size, patch size or selection of features"
        if each
        else Inferred("which of text, images and configuration is wrong was not established")
    )


def _fix(cut: bool, placeholders: int) -> Fix:
    if cut:
        return Fix(
            "don't truncate rows with images: drop long ones, raise the length, or use smaller images",
            ("max_length=None",),
        )
    if placeholders == 0:
        return Fix(
            "put one image part for each image into the message, and let the processor expand it",
            ('{"type": "image"}',),
        )
    return Fix(
        "make the batch with the processor that belongs to the model", ("AutoProcessor.from_pretrained(...)",)
    )


@image_token_count.bad
def truncated() -> Data:
    return sample_data(
        sample_row("miiiiuumAAAS", features=(4,)), sample_row("muuuuuuuuiii", 1, features=(4,))
    )


@image_token_count.bad
def no_placeholder() -> Data:
    return sample_data(sample_row("muuuuumAAAS", features=(4,)))


@image_token_count.bad
def pixels_dropped() -> Data:
    return healthy_data(shapes=(("input_ids", (3, 16)), ("labels", (3, 16))))


@image_token_count.good
def as_many_as_features() -> Data:
    return sample_data(sample_row("miiiiuumAAAS", features=(4,)), sample_row("muuuuumAAASp", 1, features=()))


@image_token_count.good
def features_unknown() -> Data:
    return healthy_data()
